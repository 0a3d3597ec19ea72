"""The report in a real browser: it is quiet, fits its window, follows the reader's settings, and prints."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_report import example

from pipeline.report import render

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
EDITIONS = ("custodian", "public")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no browser: want chromium and chromedriver on the PATH (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "custodian.html").write_text(render(example(cleared=False)))
    (folder / "public.html").write_text(render(example(custodian=False, n=180)))
    return {edition: (folder / f"{edition}.html").as_uri() for edition in EDITIONS}


def show(browser: webdriver.Chrome, page: str, *, width: int = 1400, scheme: str = "light") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page)


@pytest.mark.parametrize("edition", EDITIONS)
def test_the_page_is_quiet_and_asks_nothing_of_a_network(browser, pages, edition: str) -> None:
    show(browser, pages[edition])
    assert browser.get_log("browser") == []
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in asked if not name.startswith("data:")] == []


@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_never_scrolls_sideways(browser, pages, edition: str, width: int) -> None:
    show(browser, pages[edition], width=width)
    scrolls = "const e = document.documentElement; return e.scrollWidth - e.clientWidth"
    assert browser.execute_script(scrolls) == 0
    beyond = browser.execute_script(
        """return [...document.querySelectorAll('main *')]
             .filter(e => !e.closest('.scroll, pre, .hidden, svg') && e.getBoundingClientRect().right > innerWidth)
             .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert beyond == []


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
    brightness = {}
    for scheme in ("light", "dark"):
        show(browser, pages["public"], scheme=scheme)
        style = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        brightness[scheme] = [sum(map(int, c[4:-1].split(","))) / 3 for c in browser.execute_script(style)]
    assert brightness["light"][0] > 240 > 60 > brightness["light"][1]
    assert brightness["dark"][0] < 60 < 200 < brightness["dark"][1]


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


def test_a_dark_reader_still_prints_on_white_paper(browser, pages, tmp_path: Path) -> None:
    show(browser, pages["custodian"], scheme="dark")
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    hidden = browser.execute_script("return getComputedStyle(document.querySelector('nav')).display")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert (paper, hidden) == ("rgb(255, 255, 255)", "none")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True, "preferCSSPageSize": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
