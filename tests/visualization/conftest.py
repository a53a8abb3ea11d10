"""A headless Chromium for the explorer page; tests skip where there is none."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


PATIENCE = 120  # seconds for what the page should do at once: the machine may be busy


class Page:
    """A page in the browser, and what a user does with it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(
        self,
        path: Path,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        view: str | None = None,
        address: str = "",
    ) -> Page:
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(path.resolve().as_uri() + address)
        self.until("return document.documentElement.dataset.ready === 'yes'")
        if view is not None:
            self.view(view)
        return self

    def until(self, script: str, *arguments: Any, seconds: float = PATIENCE) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(self.driver, seconds, 0.05)
        return wait.until(lambda driver: driver.execute_script(script, *arguments))

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def view(self, name: str) -> None:
        """Open one of the page's views."""
        self.js("document.querySelector(`#nav a[data-view=${arguments[0]}]`).click()", name)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).textContent", selector))

    def set(self, selector: str, value: Any) -> None:
        """Move a slider or choose an option, with the events of a user's hand."""
        self.js(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "for (const n of ['input', 'change']) e.dispatchEvent(new Event(n, {bubbles: true}))",
            selector,
            str(value),
        )

    def spot(self, chart: str, trace: int, index: int) -> tuple[float, float]:
        """Where in the window a point of a chart is; the chart is scrolled into view."""
        place = self.js(
            """const div = document.getElementById(arguments[0]);
            div.scrollIntoView({block: 'center', behavior: 'instant'});
            const {xaxis, yaxis} = div._fullLayout, box = div.getBoundingClientRect();
            const t = div.data[arguments[1]], i = arguments[2];
            return [box.x + xaxis._offset + xaxis.d2p(t.x[i]),
                    box.y + yaxis._offset + yaxis.d2p(t.y[i])]""",
            chart,
            trace,
            index,
        )
        return float(place[0]), float(place[1])

    def mouse(self, kind: str, x: float, y: float) -> None:
        """A mouse event at a place of the window: mouseMoved, mousePressed, mouseReleased."""
        self.driver.execute_cdp_cmd(
            "Input.dispatchMouseEvent",
            {"type": kind, "x": x, "y": y}
            | ({} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}),
        )

    def hover(self, chart: str, trace: int, index: int) -> tuple[float, float]:
        """Point at a point of a chart."""
        x, y = self.spot(chart, trace, index)
        self.mouse("mouseMoved", x, y)
        return x, y

    def click(self, chart: str, place: Callable[[], tuple[float, float]], done: str) -> None:
        """Click on a place of a chart until the script ``done`` says that it was answered.

        A chart redraws what it marks under the pointer, and a click in that very moment is lost.
        """
        from selenium.common.exceptions import TimeoutException

        known = f"return (document.getElementById('{chart}')._hoverdata || []).length"
        end = time.monotonic() + PATIENCE
        while True:
            x, y = place()
            self.mouse("mouseMoved", x, y)
            self.until(known)
            self.mouse("mousePressed", x, y)
            self.mouse("mouseReleased", x, y)
            try:
                self.until(done, seconds=5)
                return
            except TimeoutException:
                if time.monotonic() > end:
                    raise
                self.mouse("mouseMoved", 1, 1)

    def complaints(self) -> list[str]:
        """Errors and warnings of the console."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses asked for since the page was opened, but for the page and its own blobs."""
        urls = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                urls.append(message["params"]["request"]["url"])
        own = ("file:", "data:", "blob:", "about:", "chrome:")  # the last: the browser's first tab
        return [url for url in urls if not url.startswith(own)]

    def address(self) -> str:
        """What the address holds of the page's state, when it is written."""
        time.sleep(0.5)  # the page waits a moment for more changes
        return str(self.js("return location.hash"))

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(
            self.js("return document.documentElement.scrollWidth - document.body.clientWidth")
        )

    def shoot(self, file: Path, top: str | None = None) -> None:
        """A screenshot of the window, with an element at its top."""
        if top is not None:
            self.js(
                "document.querySelector(arguments[0]).scrollIntoView({behavior: 'instant'})", top
            )
        self.driver.save_screenshot(str(file))


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser for all tests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium with its driver (apt-get install chromium chromium-driver)")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(PATIENCE)
    yield Page(driver)
    driver.quit()


@pytest.fixture
def open_page(chromium: Page) -> Callable[..., Page]:
    return chromium.open
