"""The data-protection officer's page in a real browser: on a phone, in the dark and on paper, and it asks nobody for anything."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.console.browsing import SCREENSHOTS
from tests.operator_console.test_sent import kept, ran


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank")
    ran("--state-folder", kept(folder), "--html", folder / "sent.html")
    return folder / "sent.html"


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1180, "dark")])
def test_the_page_fits_the_screen_and_asks_nobody(chromium: Browser, page_file: Path, width: int, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    try:
        page, asked = context.new_page(), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        expect(page.get_by_role("heading", name="What has left bank-a")).to_be_visible()
        expect(page.get_by_role("img", name="epsilon in all after each of 3 trainings")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=SCREENSHOTS / f"sent-{scheme}.png", full_page=True)
        assert asked == [page_file.as_uri()]
    finally:
        context.close()


def test_the_page_can_be_printed_whole(chromium: Browser, page_file: Path) -> None:
    context = chromium.new_context()
    try:
        page = context.new_page()
        page.goto(page_file.as_uri())
        page.emulate_media(media="print")
        wide = "[...document.querySelectorAll('table')].filter(t => t.scrollWidth > document.body.clientWidth).length"
        page.set_viewport_size({"width": 1000, "height": 1400})  # A4 across
        assert page.evaluate(wide) == 0
        assert page.pdf(format="A4", landscape=True).startswith(b"%PDF")
    finally:
        context.close()
