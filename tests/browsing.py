"""A page in a real browser, with the window and the settings that a reader may have."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import pytest
from selenium import webdriver

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


def start(profile: Path) -> webdriver.Chrome:
    """A browser without a window, or a skipped test where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no browser: want chromium and chromedriver on the PATH (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def show(browser: webdriver.Chrome, page: str, *, width: int = 1400, scheme: str = "light") -> None:
    """Load a page into a window of this width, for a reader who likes it light or dark."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page)


def asked_of_network(browser: webdriver.Chrome) -> list[str]:
    """Addresses that the page loaded from."""
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    return [name for name in asked if not name.startswith("data:")]


def too_wide(browser: webdriver.Chrome) -> list[str]:
    """What makes the page scroll sideways: elements beyond the window, boxes that scroll by themselves apart."""
    scrolls = "const e = document.documentElement; return e.scrollWidth - e.clientWidth"
    beyond = browser.execute_script(
        """return [...document.querySelectorAll('main *')]
             .filter(e => !e.closest('.scroll, pre, .hidden, svg') && e.getBoundingClientRect().right > innerWidth)
             .map(e => e.outerHTML.slice(0, 120))"""
    )
    return beyond if browser.execute_script(scrolls) == 0 else [*beyond, "the page"]


def brightness(browser: webdriver.Chrome) -> list[float]:
    """Of the page's ground and of its text, from 0 to 255."""
    style = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    return [sum(map(int, colour[4:-1].split(","))) / 3 for colour in browser.execute_script(style)]


def on_paper(browser: webdriver.Chrome, script: str) -> object:
    """What a script returns while a dark reader's page is laid out for print."""
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    answer = browser.execute_script(script)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    return answer


def printed(browser: webdriver.Chrome) -> bytes:
    """The page as PDF."""
    answer = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True, "preferCSSPageSize": True})
    return base64.b64decode(answer["data"])
