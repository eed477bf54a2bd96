"""What the console refuses, over real connections to a real server."""

import re
import socket
from http.cookiejar import CookieJar
from urllib.parse import urlsplit

import httpx
import pytest

from broker_config.logins import load
from operator_console.federation_folder import FederationFolder
from operator_console.web import api, gate
from operator_console.web.accounts import AccountBook
from operator_console.web.security import Place
from operator_console.web.server import Console, ServerOptions
from tests.operator_console.web.conftest import PASSWORDS, add_users, browser_of

pytestmark = pytest.mark.rabbitmq

CLOSED = ("/api/me", "/api/state", "/api/events", "/api/versions/1", "/api/dead-letters", "/api/audit")
ORDERS = ("/api/orders/pause", "/api/orders/quarantine", "/api/dead-letters/0123456789ab/requeue")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


def origin_of(browser) -> str:
    return str(browser.client.base_url).rstrip("/")


def audit_of(browser, most=3) -> list[tuple[str, str, str]]:
    return [(line["who"], line["did"], line["got"]) for line in browser.client.get("/api/audit").json()["lines"][:most]]


@pytest.mark.parametrize("place", CLOSED)
def test_a_stranger_reads_nothing(browser, place):
    refused = browser.client.get(place)
    assert (refused.status_code, refused.json()) == (401, {"reason": "Your session has ended. Sign in again."})


@pytest.mark.parametrize("place", ORDERS)
def test_a_stranger_orders_nothing(browser, place):
    assert browser.client.post(place, json={"confirm": True}, headers={"Origin": origin_of(browser)}).status_code == 401


def test_a_stranger_is_led_to_the_login_and_whoever_is_logged_in_to_the_page(browser, victor):
    assert (browser.client.get("/").status_code, browser.client.get("/").headers["location"]) == (303, "/login")
    assert victor.client.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert victor.client.get("/login").headers["location"] == "/"
    assert "Your session has ended. Sign in again." in browser.client.get("/login?ended=1").text


@pytest.mark.parametrize("place", ORDERS)
def test_a_viewer_orders_nothing(victor, place):
    refused = victor.post(place)
    assert refused.status_code == 403
    assert refused.json() == {"reason": "victor may look, and give no orders: the role operator is needed."}
    assert victor.client.get("/api/audit").status_code == 403


@pytest.mark.parametrize("place", [*ORDERS, "/logout"])
def test_an_order_without_the_sessions_word_or_from_another_page_is_not_followed(olga, place):
    before = olga.state()["run"]["version"], audit_of(olga, 1)
    for headers in ({"X-CSRF-Token": ""}, {"X-CSRF-Token": "x" * 43}):
        assert "X-CSRF-Token" in olga.post(place, **headers).json()["reason"]
    port = urlsplit(origin_of(olga)).port
    for origin in (
        "",
        "null",
        "https://evil.example",
        f"http://127.0.0.1:{port + 1}",
        f"https://127.0.0.1:{port}",
        "http://127.0.0.1",
    ):
        refused = olga.post(place, Origin=origin)
        assert (refused.status_code, refused.json()["reason"]) == (403, "The request does not come from a page of this console.")
    assert (olga.state()["run"]["version"], audit_of(olga, 1)) == before


def test_an_order_says_what_it_needs(olga):
    for place, body, status, told in (
        ("/api/orders/pause", {"confirm": False}, 400, "confirm: true"),
        ("/api/orders/pause", {}, 400, "confirm: true"),
        ("/api/orders/pause", [True], 400, "confirm: true"),
        ("/api/orders/explode", {"confirm": True}, 404, "There is no order explode"),
        ("/api/orders/quarantine", {"confirm": True}, 400, "name an institution"),
        ("/api/orders/pause", {"confirm": True, "institution": "north"}, 400, "name an institution"),
        ("/api/orders/release", {"confirm": True, "institution": ["north"]}, 400, "are texts"),
        ("/api/orders/release", {"confirm": True, "institution": "north", "reason": "x" * 201}, 400, "200 characters"),
        ("/api/orders/release", {"confirm": True, "institution": "x" * 20_000}, 413, "16384 bytes"),
    ):
        answer = olga.post(place, body)
        assert answer.status_code == status
        assert told in answer.json()["reason"]
    no_json = {"Origin": origin_of(olga), "X-CSRF-Token": olga.me()["csrf"]}
    assert olga.client.post("/api/orders/pause", content=b"[" * 10_000, headers=no_json).status_code == 400


def test_every_answer_has_the_headers_that_keep_a_page_from_being_misused(browser, victor, console):
    answers = [
        browser.client.get("/login"),
        browser.client.get("/"),
        browser.client.get("/nowhere"),
        browser.client.get("/healthz"),
        browser.client.get("/static/app.js"),
        browser.client.get("/api/state"),
        browser.client.post("/login"),
        browser.client.delete("/api/state"),
        browser.client.get("/login", headers={"Host": "evil.example"}),
        victor.client.get("/"),
        victor.client.get("/api/state"),
        victor.client.get("/api/versions/99999"),
    ]
    assert [answer.status_code for answer in answers] == [200, 303, 404, 200, 200, 401, 403, 405, 421, 200, 200, 404]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
        assert "server" not in answer.headers
        assert answer.headers["cache-control"] == ("no-cache" if answer.url.path.startswith("/static/") else "no-store")


def test_no_page_has_a_script_or_a_style_inside_it(browser, victor):
    for page in (browser.client.get("/login").text, victor.client.get("/").text):
        assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
        assert re.findall(r"<style|\sstyle=|\son[a-z]+=|javascript:", page) == []


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd"])
def test_no_file_but_the_pages_own_is_given_out(console, path):
    place = urlsplit(console.url)
    with socket.create_connection((place.hostname, place.port)) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 404 ")


def test_a_name_that_was_bent_to_this_computer_gets_nothing(browser, console):
    port = urlsplit(console.url).port
    for host, status in (
        (f"127.0.0.1:{port}", 200),
        (f"localhost:{port}", 200),
        (f"[::1]:{port}", 200),
        (f"evil.example:{port}", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost:no-port", 421),
        ("a@localhost", 421),
    ):
        assert browser.client.get("/login", headers={"Host": host}).status_code == status, host


def test_behind_a_reverse_proxy_its_name_and_its_origin_are_the_consoles_own():
    place = Place(["localhost"], over_tls=False, public_url="https://console.example.org")
    assert place.knows("console.example.org")
    assert not place.knows("other.example.org")
    assert place.is_origin("https://console.example.org", "127.0.0.1:8080")
    assert place.is_origin("http://localhost:8080", "localhost:8080")
    assert not place.is_origin("http://console.example.org", "127.0.0.1:8080")
    assert not place.is_origin("http://console.example.org", "console.example.org")
    assert place.is_origin("https://console.example.org", "console.example.org")
    assert place.secure
    assert not Place(["localhost"], over_tls=False).secure


def test_a_login_gives_a_cookie_that_no_script_reads_and_no_other_page_sends(browser, console):
    answer = browser.log_in("olga")
    (cookie,) = [each for each in answer.headers.get_list("set-cookie") if not each.startswith("fedqueue-form")]
    name, *flags = cookie.split("; ")
    assert re.fullmatch(rf"fedqueue-{urlsplit(console.url).port}=[A-Za-z0-9_-]{{43}}", name)
    assert {flag.lower() for flag in flags} == {"httponly", "samesite=strict", "path=/"}
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_a_login_begins_under_a_new_token_and_ends_the_former_session(browser):
    browser.client.cookies.set("fedqueue-planted", "x")
    session = f"fedqueue-{browser.client.base_url.port}"
    browser.client.cookies.set(session, "planted", domain="127.0.0.1", path="/")
    browser.log_in("victor")
    tokens = [cookie.value for cookie in browser.client.cookies.jar if cookie.name == session]
    (first,) = [token for token in tokens if token != "planted"]
    browser.client.cookies.clear()
    browser.client.cookies.set(session, first, domain="127.0.0.1", path="/")
    page = httpx.get(f"{origin_of(browser)}/login", trust_env=False)
    (csrf,) = re.findall(r'name="csrf" value="([0-9a-f]{64})"', page.text)
    fields = {"name": "victor", "password": PASSWORDS["victor"], "csrf": csrf}
    cookies = "; ".join([f"{session}={first}", *(f"{cookie.name}={cookie.value}" for cookie in page.cookies.jar)])
    with httpx.Client(trust_env=False, cookies=CookieJar()) as client:
        again = client.post(f"{origin_of(browser)}/login", data=fields, headers={"Cookie": cookies, "Origin": origin_of(browser)})
    assert again.status_code == 303
    assert browser.client.get("/api/me").status_code == 401


def test_a_login_form_of_another_browser_or_another_page_is_refused(browser):
    (csrf,) = re.findall(r'name="csrf" value="([0-9a-f]{64})"', browser.client.get("/login").text)
    fields = {"name": "olga", "password": PASSWORDS["olga"], "csrf": csrf}
    assert browser.client.post("/login", data=fields, headers={"Origin": "https://evil.example"}).status_code == 403
    assert browser.client.post("/login", data=fields).status_code == 403
    browser.client.cookies.clear()
    refused = browser.client.post("/login", data=fields, headers={"Origin": origin_of(browser)})
    assert refused.status_code == 403
    assert "This form is too old" in refused.text


def test_a_wrong_name_and_a_wrong_password_get_the_same_page(browser):
    pages = [re.sub(r"[0-9a-f]{64}", "", browser.log_in(name, "a wrong sentence").text) for name in ("victor", "nobody")]
    assert pages[0] == pages[1]
    assert "That name and password do not belong together." in pages[0]


def test_after_three_wrong_passwords_the_next_one_is_not_looked_at_before_a_pause(browser, olga):
    name, statuses = "what was meant as a password", []
    while 429 not in statuses and len(statuses) < 12:  # a slow machine takes longer for one attempt than the first pauses last
        page = browser.log_in(name, "a wrong sentence")
        statuses.append(page.status_code)
    assert statuses[:3] == [401, 401, 401]
    assert statuses[-1] == 429
    assert f"Try again in {page.headers['retry-after']} s." in page.text
    assert audit_of(olga, len(statuses))[: len(statuses) - 1] == [("(no user)", "log in", "refused")] * (len(statuses) - 1)
    browser.log_in("victor", "a wrong sentence")
    assert audit_of(olga, 1) == [("victor", "log in", "refused")]


def test_a_crowd_at_the_door_and_too_many_open_pages_are_asked_to_come_back(browser, victor, monkeypatch):
    monkeypatch.setattr(gate, "MOST_WAITING", 0)
    crowded = browser.log_in("olga")
    assert (crowded.status_code, crowded.headers["retry-after"]) == (429, "5")
    assert "Many are signing in at this moment." in crowded.text
    monkeypatch.setattr(api, "MOST_STREAMS", 0)
    assert victor.client.get("/api/events").status_code == 503


def test_a_logout_ends_the_session_in_all_tabs_and_is_audited(browser, olga):
    browser.log_in("victor")
    tab = httpx.Client(base_url=browser.client.base_url, cookies=browser.client.cookies, trust_env=False)
    with tab:
        assert tab.get("/api/me").json() == browser.me()
        assert browser.post("/logout").status_code == 204
        assert tab.get("/api/me").status_code == 401
    assert audit_of(olga, 2) == [("victor", "log out", "done"), ("victor", "log in", "as viewer")]


def test_a_session_ends_with_its_user_and_after_its_time(federation, browser, console):
    accounts = AccountBook(FederationFolder(federation).console / "users.json")
    accounts.add("guest", "viewer", "a guest's sentence")
    browser.log_in("guest", "a guest's sentence")
    assert browser.me()["role"] == "viewer"
    with browser.client.stream("GET", "/api/events") as events:
        lines = events.iter_lines()
        assert next(lines) == "retry: 2000"
        accounts.remove("guest")
        for _ in lines:
            pass  # the stream ends by itself
    assert browser.client.get("/api/me").status_code == 401
    with Console(federation, ServerOptions(port=0, idle_seconds=0.0)) as short, browser_of(short.url) as other:
        assert other.log_in("victor").status_code == 303
        assert other.client.get("/api/me").status_code == 401


def test_nothing_secret_is_in_any_answer(federation, olga):
    folder = FederationFolder(federation)
    users = AccountBook(folder.console / "users.json").all()
    secrets = [*load(federation).users.values(), folder.run_secret().decode(), *PASSWORDS.values()]
    secrets += [value for account in users.values() for value in (account.hash, account.salt)]
    secrets += [file.read_text().splitlines()[1] for file in federation.rglob("*.pem") if "PRIVATE" in file.read_text()]
    answers = [
        olga.client.get(place).text for place in (*CLOSED[:2], "/api/versions/0", "/api/versions/2", *CLOSED[4:], "/", "/healthz")
    ]
    assert len(secrets) > 10
    assert [secret for secret in secrets if any(secret in answer for answer in answers)] == []


def test_files_that_the_console_cannot_read_are_not_named_to_a_stranger(federation, tmp_path, browser):
    copy = tmp_path / "federation"
    copy.mkdir()
    for name in ("federation.json", "task.toml", "run.secret", "broker.json"):
        copy.joinpath(name).write_bytes((federation / name).read_bytes())
        copy.joinpath(name).chmod(0o600)
    add_users(copy)
    with Console(copy, ServerOptions(port=0)) as console, browser_of(console.url) as other:
        other.log_in("olga")
        (copy / "console" / "users.json").write_text("{broken")
        failed = other.client.get("/api/me")
    assert failed.status_code == 503
    assert failed.json() == {"reason": "The console cannot do that just now; its log says why."}
