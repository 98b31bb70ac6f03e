"""A real Chromium with the network blocked, which counts what runs and what is asked for."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome as WebDriver

# Runs before a page's scripts: counts what the hostile strings call, and keeps what canvases draw.
WATCH = """
window.pwnedCount = 0;
window.pwned = function () { window.pwnedCount += 1; };
window.alert = window.prompt = window.confirm = window.pwned;
window.canvasTexts = new Set();
(function () {
  var fillText = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text) {
    window.canvasTexts.add(String(text));
    return fillText.apply(this, arguments);
  };
})();
"""
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1400,1000"
).split()


@dataclass
class Browser:
    driver: "WebDriver"

    def open(self, path: Path) -> None:
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(path.as_uri())

    def run(self, script: str) -> object:
        return self.driver.execute_script(script)

    def number(self, expression: str) -> int:
        value = self.run(f"return {expression}")
        assert isinstance(value, int)
        return value

    def texts(self, selector: str) -> list[str]:
        found = self.run(f"return [...document.querySelectorAll('{selector}')].map(e => e.textContent)")
        assert isinstance(found, list)
        return found

    def wait(self, condition: str, seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"{condition} did not become true; console: {self.console()}"
            time.sleep(0.05)

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def foreign_requests(self, path: Path) -> list[str]:
        own = ("data:", "blob:", "about:", "chrome:", path.as_uri())
        return [url for url in self.requests() if not url.startswith(own)]


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser of its own; skips loudly where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="NOT TESTED in a browser: selenium is missing")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("NOT TESTED in a browser: chromium and chromedriver are not on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        session.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        yield Browser(session)
    finally:
        session.quit()


def clean(text: str) -> str:
    """Take out what keeps text from being markup or from reordering its neighbours; none of it is visible."""
    return text.translate({0x2060: None, 0x2068: None, 0x2069: None, 0xA0: " "})


def hover_everything(browser: Browser) -> list[str]:
    """Open the hover box of everything that has one; what each says."""
    said = browser.run(
        """
        return [...document.querySelectorAll('[title], .tlb-hits > rect')].map(function (element) {
          element.dispatchEvent(new PointerEvent('pointerover', {bubbles: true, clientX: 9, clientY: 9}));
          return document.querySelector('.tlb-tip').textContent;
        });
        """
    )
    assert isinstance(said, list) and said
    return said
