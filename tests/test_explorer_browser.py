"""The explorer in a real browser: it answers to pointer and keyboard, and its arithmetic is that of the rules."""

from __future__ import annotations

import re

import numpy as np
import pytest
import test_explorer
from browsing import asked_of_network, brightness, on_paper, printed, show, too_wide
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from test_explorer import COPIES, example, hostile, rule, scores, threshold

from pipeline.cohorts import phantom
from pipeline.explorer import render, score_text
from pipeline.privacy.risk import wilson

EDITIONS = ("custodian", "public")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    made = {
        "custodian": example(),
        "public": example(custodian=False),
        "none": example(custodian=False, recommended=None),
        "hostile": hostile("</script><script>document.title = 'broken'</script>"),
    }
    for name, explorer in made.items():
        (folder / f"{name}.html").write_text(render(explorer))
    return {name: (folder / f"{name}.html").as_uri() for name in made}


def text(browser: webdriver.Chrome, selector: str) -> str:
    return browser.find_element(By.CSS_SELECTOR, selector).text


def number(browser: webdriver.Chrome, selector: str) -> int:
    return int(text(browser, selector).replace(",", ""))


def open_trial(browser: webdriver.Chrome) -> str:
    """Title of the trial that the pane shows; exactly one is shown."""
    shown = [a for a in browser.find_elements(By.CSS_SELECTOR, "#pane > article") if a.is_displayed()]
    assert len(shown) == 1
    return shown[0].find_element(By.TAG_NAME, "h3").text


def press(browser: webdriver.Chrome, selector: str, *keys: str) -> None:
    browser.execute_script("arguments[0].focus()", browser.find_element(By.CSS_SELECTOR, selector))
    ActionChains(browser).send_keys(*keys).perform()


def limit(browser: webdriver.Chrome) -> float:
    """The exact threshold that the page stands at."""
    shown = text(browser, "#stand")
    found = [float(edge) for edge in example().edges if score_text(float(edge)) == shown]
    assert len(found) == 1, shown
    return found[0]


def needs(browser: webdriver.Chrome, name: str) -> list[str]:
    """Setting and note of a rule, to stop at the threshold."""
    cells = browser.find_elements(By.CSS_SELECTOR, f"[data-rule={name}]")
    shown = next(cell for cell in cells if cell.is_displayed())
    return [part.text for part in shown.find_elements(By.TAG_NAME, "span")]


@pytest.mark.parametrize("page", ["custodian", "public", "none", "hostile"])
def test_the_page_is_quiet_and_asks_nothing_of_a_network(browser, pages, page: str) -> None:
    show(browser, pages[page])
    press(browser, "#slider", Keys.ARROW_LEFT)
    assert browser.get_log("browser") == []
    assert asked_of_network(browser) == []
    assert browser.title != "broken"


@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_never_scrolls_sideways(browser, pages, edition: str, width: int) -> None:
    show(browser, pages[edition], width=width)
    assert too_wide(browser) == []


def test_the_recommended_trial_is_open_at_first_and_the_threshold_stands_at_its_own(browser, pages) -> None:
    show(browser, pages["custodian"])
    trial = example().trials[0]
    assert open_trial(browser) == "Trial 1: percentile 70"
    assert limit(browser) == trial.threshold
    assert number(browser, "#keeps") == trial.n_kept


def test_a_click_on_a_mark_opens_its_trial_and_moves_the_threshold(browser, pages) -> None:
    show(browser, pages["custodian"])
    mark = browser.find_element(By.CSS_SELECTOR, "#validation-10 .shape")
    ActionChains(browser).move_to_element(mark).perform()
    assert text(browser, "#readout").startswith(
        "Trial 10, recall 0.99: 8.9% flagged by the study’s judge [7.5, 10.4]"
    )
    ActionChains(browser).click().perform()
    trial = example().trials[9]
    assert open_trial(browser) == "Trial 10: recall 0.99"
    assert limit(browser) == trial.threshold
    assert number(browser, "#keeps") == trial.n_kept
    assert browser.find_element(By.ID, "samples").get_attribute("value") == trial.samples
    assert browser.find_element(By.ID, "validation-10").get_attribute("aria-selected") == "true"


def test_arrows_walk_the_marks_and_enter_or_space_opens_one(browser, pages) -> None:
    show(browser, pages["custodian"])
    by_ratio = sorted(
        (t for t in example().trials if not t.failed),
        key=lambda t: (t.validation["judge_ratio"].value, t.number),
    )
    press(browser, "#plot", Keys.HOME)
    press(browser, "#plot", *[Keys.ARROW_LEFT] * 20)
    plot = browser.find_element(By.ID, "plot")
    walked = [plot.get_attribute("aria-activedescendant")]
    for _ in by_ratio[1:]:
        press(browser, "#plot", Keys.ARROW_RIGHT)
        walked.append(plot.get_attribute("aria-activedescendant"))
    assert walked == [f"validation-{t.number}" for t in by_ratio]
    press(browser, "#plot", Keys.ENTER)
    assert open_trial(browser) == "Trial 13: no filter"
    assert text(browser, "#stand") == "over every score"
    press(browser, "#plot", Keys.ARROW_LEFT, Keys.SPACE)
    assert open_trial(browser) == "Trial 10: recall 0.99"


def test_a_trial_opens_from_the_table_by_keyboard_and_is_brought_into_sight(browser, pages) -> None:
    show(browser, pages["public"])
    press(browser, "#trials tr[data-trial='7'] a", Keys.ENTER)
    assert open_trial(browser) == "Trial 7: fixed 0.2"
    assert browser.execute_script("return document.activeElement.textContent").strip().startswith("Trial 7")
    assert browser.find_element(By.CSS_SELECTOR, "#trials tr[data-trial='7']").get_attribute("aria-current") == "true"


def test_an_address_may_name_the_trial_to_open(browser, pages) -> None:
    show(browser, "about:blank")
    show(browser, pages["public"] + "#trial-7")
    assert open_trial(browser) == "Trial 7: fixed 0.2"


def test_the_toggle_shows_test_patients_and_only_what_was_measured_on_them(browser, pages) -> None:
    show(browser, pages["public"])
    press(browser, "input[value=validation]", Keys.ARROW_RIGHT)
    shown = [m.get_attribute("id") for m in browser.find_elements(By.CSS_SELECTOR, ".point") if m.is_displayed()]
    assert sorted(shown) == sorted(f"test-{t.number}" for t in example().trials if t.test)
    press(browser, "#plot", Keys.HOME)
    active = browser.find_element(By.ID, "plot").get_attribute("aria-activedescendant")
    assert active.startswith("test-")


@pytest.mark.parametrize("key", ["guidance 2", "guidance 4"])
def test_the_slider_by_keyboard_counts_what_python_counts(browser, pages, key: str) -> None:
    show(browser, pages["public"])
    Select(browser.find_element(By.ID, "samples")).select_by_value(key)
    made = scores()
    for keys in ([Keys.ARROW_LEFT], [Keys.PAGE_UP] * 2, [Keys.ARROW_RIGHT] * 3, [Keys.PAGE_DOWN] * 4):
        press(browser, "#slider", *keys)
        dropped = (made[key] >= limit(browser)) | COPIES
        assert number(browser, "#drops") == dropped.sum()
        assert number(browser, "#keeps") == (~dropped).sum()
        for row, has in zip(
            browser.find_elements(By.CSS_SELECTOR, "tr.tally"), test_explorer.labels().T, strict=True
        ):
            cells = [cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
            assert cells[:2] == [f"{(dropped & has).sum():,}", f"{(~dropped & has).sum():,}"]
            assert cells[2] == f"{100 * dropped[has].mean():.1f}%"
        for name, group in (("control", "control"), ("same", "same")):
            share = wilson(int((made[group] >= limit(browser)).sum()), len(made[group]))
            low, high = 100 * share.low, 100 * share.high
            assert text(browser, f"#{name}-says") == f"· {share.value:.1%} flagged [{low:.1f}, {high:.1f}]"
        spoken = browser.find_element(By.ID, "slider").get_attribute("aria-valuetext")
        assert spoken == f"{text(browser, '#stand')}: drops {dropped.sum():,} of 4,500, keeps {(~dropped).sum():,}"


def test_the_ends_of_the_slider_drop_all_and_nothing(browser, pages) -> None:
    show(browser, pages["public"])
    press(browser, "#slider", Keys.HOME)
    assert (number(browser, "#drops"), number(browser, "#keeps")) == (4500, 0)
    press(browser, "#slider", Keys.END)
    assert (number(browser, "#drops"), number(browser, "#keeps")) == (COPIES.sum(), 4500 - COPIES.sum())
    assert needs(browser, "none")[0] == "nothing to set"


@pytest.mark.parametrize("n_left", [0, 5, 12, -6, -14])
def test_a_rule_that_is_set_as_the_page_says_stops_at_the_threshold(browser, pages, n_left: int) -> None:
    show(browser, pages["public"])
    press(browser, "#slider", *[Keys.ARROW_LEFT if n_left > 0 else Keys.ARROW_RIGHT] * abs(n_left))
    stand, made, key = limit(browser), scores(), "guidance 4"
    fixed, _ = needs(browser, "fixed")
    assert fixed == score_text(stand)
    percentile, _ = needs(browser, "percentile")
    reached = threshold(rule("percentile", float(percentile.removeprefix("percentile "))), key)
    assert ((made["control"] >= reached) == (made["control"] >= stand)).all()
    recall, _ = needs(browser, "recall")
    reached = threshold(rule("recall", float(recall.removeprefix("recall "))), key)
    assert ((made["same"] >= reached) == (made["same"] >= stand)).all()
    assert_fdr_stops_within_a_bin(browser, stand)


def assert_fdr_stops_within_a_bin(browser: webdriver.Chrome, stand: float) -> None:
    setting, note = needs(browser, "fdr")
    q, edges = float(re.findall(r"q ([\d.]+)", f"{setting} {note}")[0]), example().edges
    if setting == "cannot":
        shown = note.rsplit(" ", 1)[1]
        stand = next(float(edge) for edge in edges if score_text(float(edge)) == shown)
    reached = threshold(rule("fdr", q), "guidance 4")
    assert reached is not None
    assert abs(np.searchsorted(edges, reached, side="right") - 1 - np.searchsorted(edges, stand)) <= 1


def test_rules_as_set_say_what_they_drop_and_can_be_shown(browser, pages) -> None:
    show(browser, pages["public"])
    buttons = browser.find_elements(By.CSS_SELECTOR, "[data-samples='guidance 4'] [data-index]")
    for button, found in zip(buttons, example().samples["guidance 4"].rules, strict=True):
        browser.execute_script("arguments[0].focus()", button)
        button.send_keys(Keys.ENTER)
        copies = int(COPIES.sum()) if found.rule == "none" else 0
        assert number(browser, "#drops") == found.n_dropped + copies
    press(browser, "#back", Keys.ENTER)
    assert limit(browser) == example().trials[0].threshold
    assert not browser.find_element(By.ID, "back").is_displayed()


def test_the_grids_follow_the_slider_in_the_custodians_edition_only(browser, pages) -> None:
    show(browser, pages["custodian"])
    for keys in ([], [Keys.PAGE_DOWN], [Keys.PAGE_UP] * 3):
        press(browser, "#slider", *keys)
        dropped, kept = (
            [float(caption.text) for caption in browser.find_elements(By.CSS_SELECTOR, f"#{part}-images figcaption")]
            for part in ("dropped", "kept")
        )
        assert len(dropped) == len(kept) == 15
        assert max(kept) < limit(browser) <= min(dropped) + 1e-4
        assert dropped == sorted(dropped) and kept == sorted(kept, reverse=True)
    show(browser, pages["public"])
    assert browser.find_elements(By.CSS_SELECTOR, "#dropped-images, #kept-images, .private") == []


def test_pictures_have_words_plots_have_names_and_focus_is_seen(browser, pages) -> None:
    show(browser, pages["custodian"])
    assert browser.find_elements(By.CSS_SELECTOR, "img:not([alt]), img[alt='']") == []
    assert browser.find_elements(By.CSS_SELECTOR, "svg[role=img]:not([aria-label])") == []
    named = browser.find_element(By.ID, "slider")
    assert named.accessible_name == "Threshold"
    for selector in ("#plot", "#slider", "#samples", "#trials tbody a", "[data-index]", "input[value=validation]"):
        press(browser, selector, Keys.SHIFT)
        outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", selector


def test_dark_readers_get_a_dark_page_with_light_text(browser, pages) -> None:
    found = {}
    for scheme in ("light", "dark"):
        show(browser, pages["public"], scheme=scheme)
        found[scheme] = brightness(browser)
    assert found["light"][0] > 240 > 60 > found["light"][1]
    assert found["dark"][0] < 60 < 200 < found["dark"][1]


def test_a_dark_reader_still_prints_on_white_paper(browser, pages) -> None:
    show(browser, pages["custodian"], scheme="dark")
    laid_out = """return [getComputedStyle(document.body).backgroundColor,
                          getComputedStyle(document.querySelector('.switch')).display,
                          document.documentElement.scrollWidth <= document.documentElement.clientWidth]"""
    assert on_paper(browser, laid_out) == ["rgb(255, 255, 255)", "none", True]
    assert printed(browser).startswith(b"%PDF")


def test_without_scripts_every_trial_is_readable_and_nothing_dead_is_offered(browser, pages) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, pages["public"])
        assert "Scripts are off in this browser." in text(browser, "#glance")
        assert len(browser.find_elements(By.CSS_SELECTOR, "#pane > article:not([hidden])")) == 14
        assert "8.9% [7.5, 10.4]" in text(browser, "#trials tr[data-trial='10']")
        assert not browser.find_element(By.ID, "slider").is_displayed()
        assert text(browser, "#trials tr[data-trial='10'] th") == "10"
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_findings_are_those_of_the_study(browser, pages) -> None:
    show(browser, pages["public"])
    shown = [row.find_element(By.TAG_NAME, "th").text for row in browser.find_elements(By.CSS_SELECTOR, "tr.tally")]
    assert shown == list(phantom.FINDINGS)
