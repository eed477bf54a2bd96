"""python -m tests.picture_management_ui: the pictures of docs/operations.md, of RabbitMQ's own page and a federation at work.

Six banks learn. One of them sends what is no update, one is stopped, and the aggregator pauses for a moment: its queues fill.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page

from broker_config.connection import connect
from broker_config.logins import Logins, load
from broker_config.processes import processes_of
from broker_config.provision import administration
from broker_config.service import read_settings
from broker_config.topology import DEAD_LETTERS, LEAD, update_queue
from client_worker.settings import ClientSettings
from shared.broker import Message
from tests.conftest import eventually
from tests.console.browsing import started_chromium

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
STOPPED, GARBLING = "citizens-bank", "capital-one"
STATISTICS_SECONDS = 6.0
"""RabbitMQ counts its queues every five seconds."""


@contextmanager
def federation(folder: Path) -> Iterator[Logins]:
    """A demonstration that goes on until it is left, once it has made a few versions."""
    command = [str(Path(sys.executable).with_name("fedqueue")), "demo", "--out", str(folder), "--updates", "100000", "--quiet"]
    demo = subprocess.Popen([*command, "--epsilon", "none"])
    log = folder / "logs" / "aggregator.log"
    try:
        assert eventually(lambda: log.exists() and log.read_text().count('"committed"') > 20, 120)
        yield load(folder)
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(60)


def garble(folder: Path) -> None:
    """Sends, under a bank's login and signed by it, what nobody can read."""
    settings = read_settings(ClientSettings, folder / "institutions" / GARBLING / "client.toml")
    broker = connect(settings.broker, name=f"fedqueue-client/{GARBLING}/somebody-trying")
    try:
        broker.publish(update_queue(GARBLING), Message(secrets.token_bytes(900), "update", f"{GARBLING}/1/900", {"schema": 1}))
    finally:
        broker.close()


def stop(folder: Path, worker: str) -> int:
    """Has a worker stand still; returns its process."""
    for process in processes_of(folder):
        if worker in Path(f"/proc/{process}/cmdline").read_text():
            os.kill(process, signal.SIGSTOP)
            return process
    raise LookupError(worker)


def entered(browser: Browser, logins: Logins) -> Page:
    """The page of the administrator, logged in."""
    page = browser.new_page(viewport={"width": 1180, "height": 1600})
    page.goto(logins.management)
    page.fill("input[name=username]", logins.administrator)
    page.fill("input[name=password]", logins.users[logins.administrator])
    page.click("input[type=submit]")
    page.wait_for_selector("#main h1")
    return page


def take(page: Page, name: str, *, height: int) -> None:
    """Writes what the window shows, down to `height`."""
    page.wait_for_timeout(1000 * STATISTICS_SECONDS)
    page.screenshot(path=PICTURES / f"management-{name}.png", clip={"x": 0, "y": 0, "width": 1180, "height": height})


def queue(page: Page, logins: Logins, name: str) -> None:
    """Goes to the page of one queue."""
    page.goto(f"{logins.management}/#/queues/{logins.vhost}/{name}")
    page.wait_for_selector(f"h1:has-text('{name}')")


def main() -> None:
    """Writes the pictures."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        federation(Path(scratch) / "run") as logins,
        started_chromium() as browser,
    ):
        folder = Path(scratch) / "run"
        garble(folder)
        stop(folder, f"institutions/{STOPPED}/")
        page = entered(browser, logins)
        page.goto(f"{logins.management}/#/connections")
        take(page, "connections", height=640)
        with administration(logins) as management:
            assert eventually(lambda: management.queue(DEAD_LETTERS).get("messages"), 30)
        aggregator = stop(folder, "fedqueue-aggregator")
        page.goto(f"{logins.management}/#/queues?page=1&page_size=100&name=fl&use_regex=false")
        take(page, "queues", height=900)
        os.kill(aggregator, signal.SIGCONT)
        queue(page, logins, LEAD)
        page.click("h2:has-text('Overview')")  # without the curves, on the next page too
        page.click("h2:has-text('Consumers')")
        take(page, "leader", height=330)
        queue(page, logins, DEAD_LETTERS)
        page.click("h2:has-text('Get messages')")
        page.click("input[value='Get Message(s)']")
        page.wait_for_selector("h3:has-text('Message 1')")
        take(page, "dead-letter", height=860)


if __name__ == "__main__":
    main()
