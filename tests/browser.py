"""A headless Chromium that looks at web pages as a person does: it opens, waits for words, clicks on them, takes pictures.

Debian's packages `chromium` and `chromium-driver`, driven by Selenium.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver.remote.webelement import WebElement

PATIENCE_SECONDS = 60.0
SIZE = (1500, 1000)  # of the window, in pixels
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
