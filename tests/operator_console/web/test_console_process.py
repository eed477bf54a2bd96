"""`fedqueue console` and `fedqueue console-user` as an operator starts them: processes, ports, signals and certificates."""

import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from broker_config.authority import CERTIFICATE_FILE, KEY_FILE, Authority, write_issued
from operator_console.cli import app
from operator_console.federation_folder import FederationFolder
from operator_console.web.accounts import AccountBook
from operator_console.web.server import Console, ServerOptions
from shared.errors import SettingsError
from tests.operator_console.web.conftest import browser_of, wait_for

FEDQUEUE = Path(sys.executable).with_name("fedqueue")
WORD = "a long sentence"


@contextmanager
def started(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it tells."""
    command = [FEDQUEUE, "console", "--dir", folder, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process, process.stdout.readline().partition(";")[0]
        finally:
            process.kill()


def run(*words: object, said: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], input=said)
    if isinstance(result.exception, SettingsError):
        return result.exception.exit_code, str(result.exception)
    return result.exit_code, result.output


@pytest.fixture
def offline(tmp_path: Path) -> Path:
    """A federation's folder whose broker is not there."""
    folder = tmp_path / "federation"
    files = {
        "federation.json": '{"run_id": "abababababababab", "task": "t", "title": "T", "institutions": []}',
        "broker.json": '{"amqp": "amqp://127.0.0.1:1/f", "management": "http://127.0.0.1:1", "vhost": "f", "users": '
        '{"operator": "w"}}',
        "run.secret": "cd" * 32,
        "task.toml": 'name = "t"\nkind = "binary"\nmetric = "auc"\n[label]\ncolumn = "y"\npositive = ["1"]\nnegative = ["0"]\n'
        '[[numeric]]\ncolumns = "x"\nminimum = 0\nmaximum = 1\n[model]\ntype = "logistic"\n',
    }
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    return folder


@pytest.fixture
def offline_with_olga(offline: Path) -> Path:
    AccountBook(FederationFolder(offline).console / "users.json").add("olga", "operator", WORD)
    return offline


@pytest.mark.rabbitmq
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_and_with_code_0_while_a_page_is_open(federation, number):
    with started(federation) as (process, url), browser_of(url) as browser:
        browser.log_in("victor")
        with browser.client.stream("GET", "/api/events") as events:
            lines = events.iter_lines()
            assert next(lines) == "retry: 2000"
            process.send_signal(number)
            assert process.wait(10) == 0
            with suppress(httpx.RemoteProtocolError):
                list(lines)
        assert process.stdout.read() == ""


@pytest.mark.rabbitmq
def test_it_waits_for_the_answer_to_an_order_unless_a_second_signal_comes(federation):
    trail = FederationFolder(federation).console / "audit.jsonl"
    with started(federation) as (process, url), browser_of(url) as browser, ThreadPoolExecutor(1) as pool:
        browser.log_in("olga")
        order = pool.submit(browser.post, "/api/orders/release", {"confirm": True, "institution": "north"})  # nobody leads
        wait_for(lambda: trail.read_text().splitlines()[-1].count('"given"'))
        process.send_signal(signal.SIGTERM)
        order.exception(20)  # whatever the browser gets, it gets it now
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM


def test_it_ends_at_once_while_it_looks_for_a_broker_that_is_away(offline_with_olga):
    with started(offline_with_olga) as (process, url):
        wait_for(lambda: httpx.get(f"{url}/healthz", trust_env=False).status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_over_tls_cookies_are_secure_and_the_certificates_names_are_its_own(offline_with_olga, tmp_path):
    authority = Authority.create(tmp_path / "ca", name="test")
    issued = authority.issue_server(["localhost", "console.example.org"])
    write_issued(tmp_path / "tls", issued, authority.certificate)
    files = ["--certificate", str(tmp_path / "tls" / CERTIFICATE_FILE), "--key", str(tmp_path / "tls" / KEY_FILE)]
    trusted = ssl.create_default_context(cafile=tmp_path / "ca" / "ca.pem")
    with started(offline_with_olga, *files) as (process, url):
        assert url.startswith("https://127.0.0.1:")
        named = url.replace("127.0.0.1", "localhost")
        with browser_of(named, verify=trusted) as browser:
            answer = browser.log_in("olga", WORD)
            cookies = [each for each in answer.headers.get_list("set-cookie") if "form" not in each]
            assert cookies[0].startswith("__Host-fedqueue-")
            assert {"Secure", "HttpOnly", "Path=/", "SameSite=strict"} <= set(cookies[0].split("; "))
            assert browser.me()["role"] == "operator"
            for host, status in (("console.example.org", 200), ("other.example.org", 421)):
                assert browser.client.get("/api/me", headers={"Host": host}).status_code == status
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_what_keeps_a_console_from_being_safe_or_of_use_is_one_sentence(offline_with_olga, tmp_path):
    no_key = tmp_path / "no-key.pem"
    no_key.write_text("nonsense")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, told in (
            (["--port", port], f"port {port} on 127.0.0.1 is taken by another program; choose another with --port"),
            (["--bind", "0.0.0.0"], "--bind 0.0.0.0 without TLS shows passwords to the network"),
            (["--bind", "no.such.host.invalid", "--certificate", no_key, "--key", no_key], "no-key.pem cannot be used"),
            (["--certificate", no_key], "--certificate and --key go together"),
            (["--public-url", "console.example.org"], "is not of the form https://console.example.org"),
            (["--public-url", "https://user@console.example.org"], "is not of the form"),
        ):
            code, said = run("console", "--dir", offline_with_olga, *options)
            assert (code, told in said) == (2, True), said


def test_without_a_user_it_says_how_to_add_one(offline):
    code, said = run("console", "--dir", offline)
    assert (code, said) == (2, f"nobody may log in yet: fedqueue console-user add NAME --role operator --dir {offline}")
    assert run("console", "--dir", offline / "nowhere")[0] == 2


def test_beyond_this_computer_without_tls_only_by_saying_so(offline_with_olga):
    with Console(offline_with_olga, ServerOptions(bind="0.0.0.0", port=0, in_the_clear=True)) as console:
        assert httpx.get(f"{console.url}/login", trust_env=False).status_code == 200


def test_users_are_added_listed_given_another_password_and_removed_and_the_audit_tells_it(offline):
    users = ["console-user", "--dir", offline]

    def user(command: str, *words: object, said: str | None = None) -> tuple[int, str]:
        return run(users[0], command, *words, *users[1:], said=said)

    assert user("list") == (0, "nobody may log in yet\n")
    assert user("add", "olga", "--role", "operator", said=f"{WORD}\n") == (0, "olga may log in as operator\n")
    code, drawn = user("add", "victor", "--role", "viewer", "--draw")
    password = drawn.splitlines()[0].removeprefix("password, shown this once: ")
    book = AccountBook(FederationFolder(offline).console / "users.json")
    assert (code, len(password), book.verify("victor", password).role) == (0, 20, "viewer")
    assert user("list") == (0, "olga  operator\nvictor  viewer\n")
    assert user("password", "olga", said="another sentence\n")[0] == 0
    assert book.verify("olga", WORD) is None
    assert book.verify("olga", "another sentence")
    assert user("remove", "victor")[0] == 0
    assert user("list") == (0, "olga  operator\n")
    assert user("password", "nobody", said=f"{WORD}\n")[0] == 2
    assert user("add", "zoe", "--role", "viewer", said="")[0] == 2
    assert user("add", "zoe", "--role", "king", said=f"{WORD}\n")[0] == 2
    trail = (FederationFolder(offline).console / "audit.jsonl").read_text()
    assert [trail.count(f"console user {name}") for name in ("olga", "victor", "nobody", "zoe")] == [2, 2, 0, 0]
    assert password not in trail
    assert stat.S_IMODE((FederationFolder(offline).console / "audit.jsonl").stat().st_mode) == 0o600
