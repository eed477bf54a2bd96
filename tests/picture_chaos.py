"""python -m tests.picture_chaos: docs/pictures/chaos.gif, the web console while `fedqueue demo --chaos` strikes."""

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from tests.console.browsing import started_chromium
from tests.picture_management_ui import PICTURES

EVERY_MS, SHOWN_MS, LAST_SHOWN_MS = 2500, 800, 4000
WIDTH, HEIGHT, SCALE, COLOURS = 1180, 1180, 0.65, 40
ENTRANCE = re.compile(r"web console: (\S+)   log in as (\S+), password (\S+)")


def enter(page: Page, line: str) -> None:
    """Logs in as the demonstration's line says."""
    found = ENTRANCE.search(line)
    assert found is not None, line
    url, name, password = found.groups()
    page.goto(f"{url}/login")
    page.fill("input[name=name]", name)
    page.fill("input[name=password]", password)
    page.press("input[name=password]", "Enter")
    page.wait_for_url(f"{url}/")


def frames(demo: "subprocess.Popen[str]", page: Page) -> list[Image.Image]:
    """What the page shows until the run is over, a picture every two seconds."""
    taken = []
    while demo.poll() is None:
        whole = Image.open(io.BytesIO(page.screenshot()))
        small = whole.resize((int(WIDTH * SCALE), int(HEIGHT * SCALE)), Image.Resampling.LANCZOS)
        taken.append(small.convert("P", palette=Image.Palette.ADAPTIVE, colors=COLOURS))
        if page.get_by_text("finished").count():
            break
        page.wait_for_timeout(EVERY_MS)
    return taken


def main() -> None:
    """Writes the picture."""
    with tempfile.TemporaryDirectory() as scratch, started_chromium() as browser:
        command = [str(Path(sys.executable).with_name("fedqueue")), "demo", "--chaos", "--out", str(Path(scratch) / "run")]
        demo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert demo.stdout is not None
        line = next(line for line in demo.stdout if "web console" in line)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        enter(page, line)
        first, *others = frames(demo, page)
        demo.communicate()
    shown = [SHOWN_MS] * len(others) + [LAST_SHOWN_MS]
    first.save(PICTURES / "chaos.gif", save_all=True, append_images=others, duration=shown, loop=0, optimize=True)


if __name__ == "__main__":
    main()
