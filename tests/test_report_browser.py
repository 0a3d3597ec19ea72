"""The report in a real browser: it is quiet, fits its window, follows the reader's settings, and prints."""

from __future__ import annotations

import pytest
from browsing import asked_of_network, brightness, on_paper, printed, show, too_wide
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_report import example

from pipeline.report import render

EDITIONS = ("custodian", "public")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "custodian.html").write_text(render(example(cleared=False)))
    (folder / "public.html").write_text(render(example(custodian=False, n=180)))
    return {edition: (folder / f"{edition}.html").as_uri() for edition in EDITIONS}


@pytest.mark.parametrize("edition", EDITIONS)
def test_the_page_is_quiet_and_asks_nothing_of_a_network(browser, pages, edition: str) -> None:
    show(browser, pages[edition])
    assert browser.get_log("browser") == []
    assert asked_of_network(browser) == []


@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_never_scrolls_sideways(browser, pages, edition: str, width: int) -> None:
    show(browser, pages[edition], width=width)
    assert too_wide(browser) == []


def test_the_headline_and_the_verdict_are_on_the_first_screen(browser, pages) -> None:
    show(browser, pages["custodian"])
    headline = browser.find_element(By.TAG_NAME, "h1")
    assert headline.text.startswith("The student is safer than the teacher.")
    verdict = browser.find_element(By.CSS_SELECTOR, ".banner .verdict")
    assert verdict.text == "✕ NOT CLEARED for release"
    figure = browser.find_element(By.CSS_SELECTOR, ".answers .big")
    assert figure.text == "44.3→4.3%"
    assert all(e.rect["y"] + e.rect["height"] < 900 for e in (headline, verdict, figure))


def test_the_private_banner_stays_in_sight_and_is_in_one_edition_only(browser, pages) -> None:
    show(browser, pages["custodian"])
    browser.execute_script("window.scrollTo({top: 4000, behavior: 'instant'})")
    banner = browser.find_element(By.CLASS_NAME, "private")
    assert banner.text.startswith("PRIVATE – contains real patient images.")
    assert browser.execute_script("return arguments[0].getBoundingClientRect().top", banner) == 0
    show(browser, pages["public"])
    assert browser.find_elements(By.CLASS_NAME, "private") == []


def test_dark_readers_get_a_dark_page_with_light_text(browser, pages) -> None:
    found = {}
    for scheme in ("light", "dark"):
        show(browser, pages["public"], scheme=scheme)
        found[scheme] = brightness(browser)
    assert found["light"][0] > 240 > 60 > found["light"][1]
    assert found["dark"][0] < 60 < 200 < found["dark"][1]


def test_the_recipe_opens_by_keyboard(browser, pages) -> None:
    show(browser, pages["public"])
    recipe = browser.find_element(By.CSS_SELECTOR, "#recipe details")
    summary = recipe.find_element(By.TAG_NAME, "summary")
    browser.execute_script("arguments[0].focus()", summary)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert recipe.get_attribute("open")
    assert "rule: percentile" in recipe.find_element(By.TAG_NAME, "pre").text


def test_pictures_have_words_and_plots_have_titles(browser, pages) -> None:
    show(browser, pages["custodian"])
    assert browser.find_elements(By.CSS_SELECTOR, "img:not([alt]), img[alt='']") == []
    assert (
        browser.find_elements(
            By.CSS_SELECTOR, "main svg:not([aria-hidden]):not([role=img]):not(svg svg, [aria-hidden] svg)"
        )
        == []
    )
    assert browser.find_elements(By.CSS_SELECTOR, "svg[role=img]:not(:has(> title))") == []
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_a_dark_reader_still_prints_on_white_paper(browser, pages) -> None:
    show(browser, pages["custodian"], scheme="dark")
    laid_out = """return [getComputedStyle(document.body).backgroundColor,
                          getComputedStyle(document.querySelector('nav')).display]"""
    assert on_paper(browser, laid_out) == ["rgb(255, 255, 255)", "none"]
    assert printed(browser).startswith(b"%PDF")
