"""A headless Chromium that looks at web pages as a person does: opens them, waits for words, clicks.

Debian's packages `chromium` and `chromium-driver`, driven by Selenium.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from selenium.webdriver.remote.webelement import WebElement

PATIENCE_SECONDS = 120.0
SIZE = (1500, 1000)  # of the window, in pixels
ROWS = "//*[@role='row'][.//*[@role='gridcell']]"  # of MLflow's table of runs
SECTIONS = "//*[@data-testid='experiment-view-compare-runs-section-header']"  # of its charts
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars")


def missing() -> str | None:
    """Why there is no browser here, if so."""
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
        """Wait until something holds; what it is."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.wait import WebDriverWait

        waiting = WebDriverWait(
            self.driver, PATIENCE_SECONDS, poll_frequency=0.1, ignored_exceptions=[StaleElementReferenceException]
        )
        return waiting.until(lambda _: condition(), f"waited in vain for {what}; the page says:\n{self.text()}")

    def all(self, path: str) -> list[WebElement]:
        """The visible elements of an XPath."""
        return [element for element in self.driver.find_elements("xpath", path) if element.is_displayed()]

    def text(self) -> str:
        """All words of the page."""
        return self.driver.find_element("tag name", "body").text

    def see(self, *words: str) -> None:
        """Wait until the page shows all of these words."""
        for each in words:
            self.wait(lambda each=each: each in self.text(), repr(each))

    def find(self, path: str) -> WebElement:
        """Wait for the first visible element of an XPath."""
        return self.wait(lambda: self.all(path), path)[0]

    def click(self, path: str) -> None:
        self.find(path).click()

    def scroll_to(self, path: str) -> None:
        """Pages draw their charts where they can be seen."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'start'})", self.find(path))

    def picture(self, file: Path) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(file))
        return file


@contextmanager
def browser(size: tuple[int, int] = SIZE) -> Iterator[Browser]:
    """A browser that is closed afterwards."""
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
        browser: what shows them.
        uri: of the server.
        experiment: id.
    """

    TRAINING = "workflowType=machine_learning"  # MLflow opens with the pages for language models otherwise

    def __init__(self, browser: Browser, uri: str, experiment: str) -> None:
        self.browser = browser
        self.place = f"{uri}/#/experiments/{experiment}"
        self.browser.open(f"{uri}/#/experiments?{self.TRAINING}")
        self.browser.click("//button[@aria-label='Close']")  # MLflow's assistant, which takes a quarter of the window

    def runs(self, chosen: str = "", charts: bool = False) -> None:
        """The table of runs, or their charts."""
        mode = "&compareRunsMode=CHART" if charts else ""
        self.browser.open(f"{self.place}/runs?{self.TRAINING}&searchFilter={quote(chosen)}{mode}")
        self.browser.see("matching run")

    def listed(self) -> list[str]:
        """The ids of the runs in the table, from above."""
        return list(dict.fromkeys(str(row.get_attribute("row-id")) for row in self.browser.all(ROWS)))

    def unfold(self, run_id: str) -> None:
        """Show what stands under a run of the table."""
        before = len(self.listed())
        self.browser.click(f"{ROWS}[@row-id='{run_id}']//button[.//*[name()='svg']]")
        self.browser.wait(lambda: len(self.listed()) > before, "runs under a run")

    def group_by(self, tag: str) -> None:
        """Make one line of all runs with the same value of a tag."""
        self.browser.click("//button[contains(., 'Group by')]")
        self.browser.click(f"//*[starts-with(@role, 'menuitem') or self::li][normalize-space(.)='{tag}']")
        self.browser.see(f"Group by: {tag}", "Group:")

    def only_charts(self, words: str) -> None:
        """Show only those charts whose names have these words in them."""
        self.browser.find("//input[@placeholder='Search metric charts']").send_keys(words)

    def section(self, group: str) -> None:
        """Go to a group of charts."""
        self.browser.scroll_to(f"{SECTIONS}[contains(., '{group}')]")

    def enlarge(self) -> None:
        """Open the first chart, one of pictures over steps, at its last step, and go to the picture in it."""
        from selenium.webdriver.common.keys import Keys

        self.browser.click("(//button[@data-component-id='fullscreen_button_chartcard'])[1]")
        box = self.browser.find("//*[@role='dialog']//input[@type='number']")
        last = str(box.get_attribute("max"))
        box.send_keys(Keys.CONTROL + "a")
        box.send_keys(last, Keys.TAB)  # it is heeded once the box is left
        script = """const image = document.querySelector('[role=dialog] img')
                    return image && image.naturalWidth > 300 && image.src.includes('step%2B' + arguments[0] + '%2B')"""
        self.browser.wait(lambda: self.browser.driver.execute_script(script, last), "the picture of the last step")
        self.browser.scroll_to("//*[@role='dialog']//img")

    def run(self, run_id: str, tab: str = "") -> None:
        """The page of a run."""
        self.browser.open(f"{self.place}/runs/{run_id}{'/' * bool(tab)}{tab}?{self.TRAINING}")

    def whole_description(self) -> None:
        self.browser.see("Description")
        self.browser.click("//*[text()='Show more']")
        self.browser.see("Show less")

    def artifact(self, *path: str) -> None:
        """Open a file among the artifacts of the run whose page is open, folder by folder."""
        for name in path:
            self.browser.click(f"//*[@data-testid='artifact-tree-node'][@artifact-name='{name}']")

    def see_pictures(self, count: int) -> None:
        """Wait until the page shows at least so many pictures, loaded and not icons."""
        script = "return [...document.images].filter(i => i.naturalWidth > 100 && i.offsetWidth > 50).length"
        self.browser.wait(lambda: self.browser.driver.execute_script(script) >= count, f"{count} pictures")
