"""The console's pictures in the pages, of a real demonstration with six banks; FEDQUEUE_WRITE_DOCS=1 writes them anew."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from operator_console.federation_folder import FederationFolder
from operator_console.web.accounts import AccountBook
from operator_console.web.server import Console, ServerOptions
from tests.conftest import eventually
from tests.console.browsing import SCREENSHOTS, Visit
from tests.console.federation import PASSWORDS

pytestmark = [pytest.mark.rabbitmq, pytest.mark.long, pytest.mark.timeout(300)]
DOCS = Path("docs/pictures")
MOST_BYTES = 250_000
FIFTY_OR_MORE = re.compile(r"^([5-9]\d|\d{3})$")
MOST_TELLING = """async () => {
    const asked = Array.from({length: 50}, (_, version) => fetch(`/api/versions/${version}`).then((answer) => answer.json()));
    const stale = (line) => Math.max(0, ...line.updates.map((update) => update.staleness)) + 5 * line.not_folded.length;
    return (await Promise.all(asked)).reduce((one, other) => (stale(other) > stale(one) ? other : one)).version;
}"""
"""The version with the stalest update, or with what was not folded."""


@pytest.fixture(scope="module")
def demonstration(installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a demonstration that has begun to make versions."""
    folder = tmp_path_factory.mktemp("demonstration") / "run"
    program = Path(sys.executable).with_name("fedqueue")
    with subprocess.Popen([program, "demo", "--out", folder, "--quiet"]) as running:
        assert eventually((folder / "lineage.jsonl").exists, 1) or eventually((folder / "aggregator.toml").exists, 60)
        AccountBook(FederationFolder(folder).console / "users.json").add("olga", "operator", PASSWORDS["olga"])
        yield folder
        running.send_signal(signal.SIGINT)


def test_the_pictures_of_the_pages_show_a_real_run(demonstration: Path, chromium: Browser) -> None:
    with Console(demonstration, ServerOptions(port=0)) as console:
        light, dark = Visit(chromium, console.url).sign_in(), Visit(chromium, console.url, dark=True).sign_in()
        phone = Visit(chromium, console.url, phone=True, device_scale_factor=2).sign_in()
        expect(light.page.locator(".happened")).to_contain_text("was killed with SIGKILL", timeout=120_000)
        expect(light.page.locator(".tile", has_text="Model version").locator(".tile-value")).to_have_text(
            FIFTY_OR_MORE, timeout=60_000
        )
        expect(light.page.get_by_label("Figure")).to_have_value("auc")
        taken = [light.picture("console-light"), phone.picture("console-phone", full=False)]
        dark.go("Institutions")
        taken.append(dark.picture("console-dark"))
        light.go("Versions")
        version = light.page.evaluate(MOST_TELLING)
        light.page.evaluate(f"location.hash = '#versions/{version}'")
        expect(light.page.locator("#version h2")).to_have_text(f"Version {version}")
        taken.append(light.picture("console-version", full=False))
        complaints = [*light.complaints, *dark.complaints, *phone.complaints]
        for visit in (light, dark, phone):
            visit.context.close()
    assert complaints == []
    assert max(file.stat().st_size for file in taken) < MOST_BYTES
    if os.environ.get("FEDQUEUE_WRITE_DOCS"):
        for file in taken:
            (DOCS / file.name).write_bytes((SCREENSHOTS / file.name).read_bytes())
