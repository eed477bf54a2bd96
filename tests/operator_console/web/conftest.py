"""A console over a real federation on a real RabbitMQ, spoken to as a browser speaks to it."""

import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker_config.logins import Logins, save
from broker_config.node import PrivateNode
from broker_config.provision import administration
from operator_console.federation_folder import FederationFolder
from operator_console.init_command import init
from operator_console.web.accounts import AccountBook
from operator_console.web.server import Console, ServerOptions
from tests.conftest import INSTITUTIONS
from tests.leading import leading, make_three_versions

PASSWORDS = {"olga": "olga's long sentence", "victor": "victor's long sentence"}
ROLES = {"olga": "operator", "victor": "viewer"}


@dataclass
class Browser:
    """A client with cookies that says where its requests come from, as a browser does."""

    client: httpx.Client

    def log_in(self, name: str, password: str | None = None) -> httpx.Response:
        page = self.client.get("/login")
        (csrf,) = re.findall(r'name="csrf" value="([0-9a-f]{64})"', page.text)
        fields = {"name": name, "password": password or PASSWORDS[name], "csrf": csrf}
        return self.client.post("/login", data=fields, headers={"Origin": str(self.client.base_url).rstrip("/")})

    def me(self) -> dict[str, Any]:
        return self.client.get("/api/me").raise_for_status().json()

    def post(self, place: str, body: object = None, **headers: str) -> httpx.Response:
        own = {"Origin": str(self.client.base_url).rstrip("/"), "X-CSRF-Token": self.me()["csrf"], **headers}
        return self.client.post(place, json={"confirm": True} if body is None else body, headers=own)

    def state(self) -> dict[str, Any]:
        return self.client.get("/api/state").raise_for_status().json()


@contextmanager
def browser_of(url: str, **options: Any) -> Iterator[Browser]:
    with httpx.Client(base_url=url, trust_env=False, timeout=40, **options) as client:
        yield Browser(client)


def add_users(folder: Path) -> None:
    accounts = AccountBook(FederationFolder(folder).console / "users.json")
    for name, word in PASSWORDS.items():
        accounts.add(name, ROLES[name], word)


@pytest.fixture(scope="module")  # its institutions have logins on the node that other modules use too
def federation(private_node: PrivateNode, logins: Logins, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two institutions, three versions of updates of north, and nobody who leads at the moment."""
    folder = tmp_path_factory.mktemp("console") / "federation"
    vhost = f"console-{secrets.token_hex(4)}"
    users = {name: word for name, word in logins.users.items() if name not in INSTITUTIONS}
    own = logins.model_copy(update={"vhost": vhost, "amqp": private_node.amqp_url(vhost), "users": users})
    save(own, folder)
    init(task="heart-disease", institution=["north", "south"], epsilon="none", buffer_size=1, folder=folder)
    make_three_versions(folder)
    add_users(folder)
    yield folder
    with administration(own) as management:
        management.delete_vhost()
        for institution in ("north", "south"):
            management.delete_user(institution)


@pytest.fixture
def led(federation: Path) -> Iterator[None]:
    """An aggregator leads."""
    with leading(federation):
        yield


@pytest.fixture(scope="module")
def console(federation: Path) -> Iterator[Console]:
    """A console that has read the lineage."""
    with Console(federation, ServerOptions(port=0)) as opened:
        yield opened


@pytest.fixture
def browser(console: Console) -> Iterator[Browser]:
    """A browser that nobody has logged in with."""
    with browser_of(console.url) as opened:
        yield opened


@pytest.fixture(scope="module")
def olga(console: Console) -> Iterator[Browser]:
    """An operator's browser."""
    with browser_of(console.url) as opened:
        assert opened.log_in("olga").status_code == 303
        wait_for(lambda: (opened.state()["run"] or {}).get("version") == 3)
        yield opened


@pytest.fixture(scope="module")
def victor(console: Console) -> Iterator[Browser]:
    """A viewer's browser."""
    with browser_of(console.url) as opened:
        assert opened.log_in("victor").status_code == 303
        yield opened


def wait_for(look: Callable[[], object], timeout_seconds: float = 20.0) -> None:
    """Fails where it does not become true."""
    deadline = time.monotonic() + timeout_seconds
    while not look():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.1)
