"""A headless Chromium that signs in, looks, and notes whatever goes wrong on the page."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.console.federation import PASSWORDS

SCREENSHOTS = Path("build/screenshots")
QUIET = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)
PATIENCE_MS = 20_000
expect.set_options(timeout=PATIENCE_MS)


def _programs() -> Iterator[str]:
    """Of the system, those that start: Ubuntu's is a script that asks for a snap."""
    for program in filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        if subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0:
            yield program


@contextmanager
def started_chromium() -> Iterator[Browser]:
    """The system's Chromium, else Playwright's own; absent, a skip at a desk and a failure where it is demanded."""
    with sync_playwright() as playwright:
        program = next(_programs(), playwright.chromium.executable_path)
        if not Path(program).exists():
            missing = "there is no Chromium: setup/chromium installs it"
            pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield browser
        browser.close()


class Visit:
    """One person's page. What the browser complains of and every strange host that it asks are in `complaints`."""

    def __init__(self, browser: Browser, url: str, *, phone: bool = False, dark: bool = False, **options: object) -> None:
        size = {"width": 360, "height": 780} if phone else {"width": 1360, "height": 900}
        self.url = url
        self.context = browser.new_context(viewport=size, color_scheme="dark" if dark else "light", **options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"a dialog: {dialog.message}"))
        self.page.on("request", lambda request: self._same_host(request.url))

    def _same_host(self, url: str) -> None:
        if urlsplit(url).netloc != urlsplit(self.url).netloc and not url.startswith("data:"):
            self.complaints.append(f"asked another host: {url}")

    def sign_in(self, name: str = "olga", password: str | None = None) -> "Visit":
        """Fills the form in as a person does."""
        self.page.goto(self.url + "/login")
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(password or PASSWORDS[name])
        self.page.get_by_role("button", name="Sign in").click()
        return self

    def go(self, view: str) -> "Visit":
        """Opens a view by its link."""
        self.page.get_by_role("navigation", name="Views").get_by_role("link", name=view).click()
        expect(self.page.get_by_role("heading", level=1, name=view)).to_be_visible()
        return self

    @property
    def live(self) -> Locator:
        """What says whether the page hears of the run."""
        return self.page.locator("#link")

    @property
    def notice(self) -> Locator:
        """What became of the last order."""
        return self.page.locator("#notice")

    def row(self, table: str, name: str) -> Locator:
        """The row of a table that begins with a name."""
        return self.page.locator(f"#{table} tbody tr").filter(has=self.page.get_by_role("rowheader", name=name, exact=True))

    def dialog(self) -> Locator:
        """The open dialog."""
        return self.page.get_by_role("dialog")

    def picture(self, name: str, *, folder: Path = SCREENSHOTS, full: bool = True) -> Path:
        """A screenshot, kept as an artefact."""
        folder.mkdir(parents=True, exist_ok=True)
        self.page.wait_for_timeout(400)  # bars move for 300 ms
        self.page.screenshot(path=folder / f"{name}.png", full_page=full)
        return folder / f"{name}.png"

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))
