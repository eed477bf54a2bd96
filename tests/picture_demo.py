"""python -m tests.picture_demo: docs/pictures/live-view.svg and report.png, both of one `fedqueue demo`."""

import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import ViewportSize
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from operator_console.demo import DemoOptions, run_demo
from operator_console.live_view import render
from operator_console.view_state import ViewState
from tests.console.browsing import started_chromium
from tests.picture_management_ui import PICTURES

COLUMNS, COLOURS = 116, 128
REPORT: ViewportSize = {"width": 1100, "height": 910}
FONT = 'ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace'


class Camera:
    """Looks at the run, and keeps the last view that shows a bank as killed."""

    def __init__(self) -> None:
        self.kept: ViewState | None = None

    def watch(self, tick: Callable[[], ViewState | None], *, console: Console) -> None:
        """Instead of the live view."""
        while (view := tick()) is not None:
            if any(row.state == "killed" for row in view.rows):
                self.kept = view


def picture(view: ViewState) -> str:
    """SVG, with the fonts that a reader has and without a password."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(render(replace(view, login=f"{view.login.split(' / ')[0]} / (its password)")))
    head, _, rest = CONSOLE_SVG_FORMAT.partition("    @font-face")
    own_fonts = head + rest[rest.index("    .{unique_id}-matrix") :].replace("Fira Code, monospace", FONT)
    return console.export_svg(title="make demo", code_format=own_fonts, unique_id="t")


def main() -> None:
    """Writes both."""
    camera = Camera()
    with tempfile.TemporaryDirectory() as scratch, started_chromium() as browser:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("operator_console.demo.watch", camera.watch)
            folder = run_demo(DemoOptions(out=Path(scratch) / "run"), Console())
        assert camera.kept is not None, "no bank was seen killed"
        (PICTURES / "live-view.svg").write_text(picture(camera.kept))
        page = browser.new_page(viewport=REPORT)
        page.goto((folder / "report.html").as_uri())
        whole = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        whole.quantize(COLOURS).save(PICTURES / "report.png", optimize=True)


if __name__ == "__main__":
    main()
