"""A console over a federation at work, and a browser in front of it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from broker_config.logins import Logins
from broker_config.node import PrivateNode
from operator_console.web.server import Console, ServerOptions
from tests.console.browsing import Visit, started_chromium
from tests.console.federation import Federation, at_work, founded


@pytest.fixture(scope="module")
def federation(private_node: PrivateNode, logins: Logins, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Three banks that train for as long as the module's tests last."""
    with founded(private_node, logins, tmp_path_factory.mktemp("watched") / "federation") as found, at_work(found):
        yield found


@pytest.fixture(scope="module")
def console(federation: Federation) -> Iterator[Console]:
    """The console, on a free port."""
    with Console(federation.folder, ServerOptions(port=0)) as opened:
        yield opened


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for the module: Playwright's event loop must not outlive it, other tests have loops of their own."""
    with started_chromium() as browser:
        yield browser


@pytest.fixture
def visit(chromium: Browser, console: Console) -> Iterator[Callable[..., Visit]]:
    """Opens the console as a person with a clean browser; at the end nothing may have gone wrong on any page."""
    with ExitStack() as stack:
        visits: list[Visit] = []

        def opened(name: str | None = "olga", *, url: str = console.url, **options: Any) -> Visit:
            found = Visit(chromium, url, **options)
            stack.callback(found.context.close)
            visits.append(found)
            if name is not None:
                found.sign_in(name)
                expect(found.live).to_contain_text("live")
            return found

        yield opened
        assert [complaint for each in visits for complaint in each.complaints] == []
