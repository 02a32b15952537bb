"""A headless Chromium that opens web pages, waits for text and clicks.

Requires Debian's packages `chromium` and `chromium-driver`; driven by Selenium.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from support.waiting import PATIENCE

if TYPE_CHECKING:
    from selenium.webdriver.remote.webelement import WebElement

SIZE = (1500, 1000)  # of the window, in pixels
ROWS = "//*[@role='row'][.//*[@role='gridcell']]"  # rows of MLflow's table of runs
SECTIONS = "//*[@data-testid='experiment-view-compare-runs-section-header']"  # sections of MLflow's charts
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars")


def missing() -> str | None:
    """Reason why no browser is available, or None."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return "needs Chromium: apt-get install -y --no-install-recommends chromium chromium-driver"
    return None if importlib.util.find_spec("selenium") else "needs Selenium: pip install selenium"


class Browser:
    """A browser with one window."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get(address)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until the condition is true and return its value."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.wait import WebDriverWait

        waiting = WebDriverWait(
            self.driver, PATIENCE, poll_frequency=0.1, ignored_exceptions=[StaleElementReferenceException]
        )
        return waiting.until(lambda _: condition(), f"waited in vain for {what}; the page says:\n{self.text()}")

    def all(self, path: str) -> list[WebElement]:
        """Visible elements that match an XPath."""
        return [element for element in self.driver.find_elements("xpath", path) if element.is_displayed()]

    def text(self) -> str:
        """All text of the page."""
        return self.driver.find_element("tag name", "body").text

    def see(self, *words: str) -> None:
        """Wait until the page shows all given words."""
        for each in words:
            self.wait(lambda each=each: each in self.text(), repr(each))

    def find(self, path: str) -> WebElement:
        """Wait for the first visible element that matches an XPath."""
        return self.wait(lambda: self.all(path), path)[0]

    def click(self, path: str) -> None:
        self.find(path).click()

    def scroll_to(self, path: str) -> None:
        """Scroll to an element; pages draw charts only in the visible area."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'start'})", self.find(path))

    def picture(self, file: Path) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(file))
        return file


@contextmanager
def browser(size: tuple[int, int] = SIZE) -> Iterator[Browser]:
    """A browser, closed at exit."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for option in (*OPTIONS, f"--window-size={size[0]},{size[1]}"):
        options.add_argument(option)
    driver = Chrome(options, ChromeService(shutil.which("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


class Pages:
    """The pages of an MLflow experiment.

    Args:
        browser: browser that shows the pages.
        uri: URI of the server.
        experiment: experiment id.
    """

    TRAINING = "workflowType=machine_learning"  # without it, MLflow shows its pages for language models

    def __init__(self, browser: Browser, uri: str, experiment: str) -> None:
        self.browser = browser
        self.place = f"{uri}/#/experiments/{experiment}"
        self.browser.open(f"{uri}/#/experiments?{self.TRAINING}")
        self.browser.click("//button[@aria-label='Close']")  # MLflow's assistant covers a quarter of the window

    def runs(self, chosen: str = "", charts: bool = False) -> None:
        """The table of runs, or their charts."""
        mode = "&compareRunsMode=CHART" if charts else ""
        self.browser.open(f"{self.place}/runs?{self.TRAINING}&searchFilter={quote(chosen)}{mode}")
        self.browser.see("matching run")

    def view(self, sweep: str, charts: bool = False) -> None:
        """The prepared view of a sweep, by the id of its MLflow run: a table, or charts."""
        self.browser.open("about:blank")  # the same page with another address keeps its state
        mode = "&compareRunsMode=CHART" if charts else ""
        self.browser.open(f"{self.place}/runs?{self.TRAINING}&viewStateShareKey=semaim-{sweep[:12]}{mode}")
        self.browser.see("matching run", "shared view")

    def models(self) -> None:
        """The table of models."""
        self.browser.open(f"{self.place}/models?{self.TRAINING}")
        self.browser.see("Model name")

    def listed(self) -> list[str]:
        """Ids of the runs in the table, top to bottom."""
        return list(dict.fromkeys(str(row.get_attribute("row-id")) for row in self.browser.all(ROWS)))

    def unfold(self, run_id: str) -> None:
        """Expand a run of the table to show its child runs."""
        before = len(self.listed())
        self.browser.click(f"{ROWS}[@row-id='{run_id}']//button[.//*[name()='svg']]")
        self.browser.wait(lambda: len(self.listed()) > before, "runs under a run")

    def group_by(self, tag: str) -> None:
        """Group the runs that have the same value of a tag."""
        self.browser.click("//button[contains(., 'Group by')]")
        self.browser.click(f"//*[starts-with(@role, 'menuitem') or self::li][normalize-space(.)='{tag}']")
        self.browser.see(f"Group by: {tag}", "Group:")

    def only_charts(self, words: str) -> None:
        """Show only charts whose names contain the given words."""
        self.browser.find("//input[@placeholder='Search metric charts']").send_keys(words)

    def section(self, group: str) -> None:
        """Scroll to a group of charts."""
        self.browser.scroll_to(f"{SECTIONS}[contains(., '{group}')]")

    def enlarge(self) -> None:
        """Enlarge the first chart (images over steps) at its last step, and scroll to its image."""
        from selenium.webdriver.common.keys import Keys

        self.browser.click("(//button[@data-component-id='fullscreen_button_chartcard'])[1]")
        box = self.browser.find("//*[@role='dialog']//input[@type='number']")
        last = str(box.get_attribute("max"))
        box.send_keys(Keys.CONTROL + "a")
        box.send_keys(last, Keys.TAB)  # the value is applied when the box loses focus
        script = """const image = document.querySelector('[role=dialog] img')
                    return image && image.naturalWidth > 300 && image.src.includes('step%2B' + arguments[0] + '%2B')"""
        self.browser.wait(lambda: self.browser.driver.execute_script(script, last), "the picture of the last step")
        self.browser.scroll_to("//*[@role='dialog']//img")

    def run(self, run_id: str, tab: str = "") -> None:
        """Open the page of a run."""
        self.browser.open(f"{self.place}/runs/{run_id}{'/' * bool(tab)}{tab}?{self.TRAINING}")

    def whole_description(self) -> None:
        self.browser.see("Description")
        self.browser.click("//*[text()='Show more']")
        self.browser.see("Show less")

    def artifact(self, *path: str) -> None:
        """Open an artifact of the current run, folder by folder."""
        for name in path:
            self.browser.click(f"//*[@data-testid='artifact-tree-node'][@artifact-name='{name}']")

    def see_pictures(self, count: int) -> None:
        """Wait until the page shows at least `count` loaded images, not counting icons."""
        script = "return [...document.images].filter(i => i.naturalWidth > 100 && i.offsetWidth > 50).length"
        self.browser.wait(lambda: self.browser.driver.execute_script(script) >= count, f"{count} pictures")
