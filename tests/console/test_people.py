"""Who may see and do what, and what the page says when a login, a session or the broker ends."""

import re

import pytest
from playwright.sync_api import expect

from broker_config.logins import load, save
from campaigns.tcp_proxy import TcpProxy
from operator_console.web.accounts import AccountBook
from operator_console.web.server import Console, ServerOptions
from tests.conftest import INSTITUTIONS
from tests.console.federation import PASSWORDS, Federation

TURN = """() => {
    Object.defineProperty(document, "hidden", {configurable: true, get: () => %s});
    document.dispatchEvent(new Event("visibilitychange"));
}"""
HIDE, SHOW = TURN % "true", TURN % "false"

pytestmark = pytest.mark.rabbitmq


def expected(visit, *texts):
    """Takes what had to be complained of out of the complaints."""
    visit.complaints[:] = [each for each in visit.complaints if not any(text in each for text in texts)]


def test_a_wrong_password_is_answered_in_words_and_the_right_one_then_opens_the_page(visit):
    seen = visit(None).sign_in("olga", "not her password")
    expect(seen.page.get_by_role("alert")).to_contain_text(re.compile("password", re.IGNORECASE))
    assert seen.page.url.endswith("/login")
    seen.picture("login-failed")
    expected(seen, "401")
    seen.sign_in("olga")
    expect(seen.page.get_by_role("heading", level=1)).to_have_text("Overview")


def test_nobody_sees_the_run_without_a_login(visit):
    seen = visit(None)
    seen.page.goto(seen.url + "/#versions/1")
    expect(seen.page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_a_viewer_sees_every_view_and_no_button_that_orders_anything(visit):
    seen = visit("victor")
    for view in ("Overview", "Institutions", "Staleness", "Dead letters", "Versions"):
        seen.go(view)
        expect(seen.page.locator("[data-order]")).to_have_count(0)
    expect(seen.page.get_by_role("link", name="Audit")).to_have_count(0)
    seen.page.keyboard.press("a")
    expect(seen.page.locator("#view")).to_contain_text("Only operators see who did what.")


def test_signing_out_ends_the_session_for_the_back_button_too(visit):
    seen = visit()
    seen.page.get_by_role("button", name="Sign out").click()
    expect(seen.page.get_by_role("heading", level=1)).to_have_text("Sign in")
    seen.page.goto(seen.url + "/")
    expect(seen.page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_an_account_that_is_taken_away_leads_back_to_the_login_with_the_reason(visit, federation):
    seen = visit("gast")
    AccountBook(federation.folder / "console" / "users.json").remove("gast")
    expect(seen.page.get_by_role("heading", level=1)).to_have_text("Sign in")
    expect(seen.page.get_by_role("alert")).to_contain_text("Your session has ended. Sign in again.")
    expected(seen, "401", "ERR_")


@pytest.mark.long
def test_a_lost_broker_is_said_in_words_until_it_is_back(visit, federation: Federation):
    own = load(federation.folder)
    port = int(re.search(r":(\d+)/", own.amqp)[1])
    with TcpProxy(port) as link:
        save(own.model_copy(update={"amqp": own.amqp.replace(f":{port}/", f":{link.port}/")}), federation.folder)
        try:
            with Console(federation.folder, ServerOptions(port=0)) as console:
                seen = visit(url=console.url)
                link.refuse()
                link.cut()
                expect(seen.live).to_have_text("broker lost")
                expect(seen.page.get_by_role("alert")).to_contain_text(
                    re.compile(r"no connection to the broker.* Lost \d+ s ago")
                )
                seen.picture("broker-lost")
                link.accept()
                expect(seen.live).to_have_text("live", timeout=60_000)
                expect(seen.page.get_by_role("alert")).to_be_empty()
                seen.context.close()
        finally:
            save(own, federation.folder)


@pytest.mark.long
def test_a_console_that_is_gone_is_reconnected_to_and_the_age_of_what_is_shown_grows(visit, federation):
    with Console(federation.folder, ServerOptions(port=0)) as console:
        seen = visit(url=console.url)
        port = int(console.url.rsplit(":", 1)[1])
    expect(seen.live).to_contain_text(re.compile(r"reconnecting, data [1-9]\d* s old"))
    expect(seen.page.get_by_role("alert")).to_contain_text("The console's server does not answer.")
    expect(seen.page.locator(".tile", has_text="Model version")).to_be_visible()
    seen.picture("console-lost")
    with Console(federation.folder, ServerOptions(port=port)):
        # a console that was started anew knows nobody: sessions live in its memory
        expect(seen.page.get_by_role("alert")).to_contain_text("Your session has ended.")
        seen.sign_in("olga")
        expect(seen.live).to_have_text("live")
        expected(seen, "401", "ERR_", "Failed to load resource")
        seen.context.close()


@pytest.mark.long
def test_no_password_hash_or_secret_is_on_any_page_or_in_any_answer(visit, federation):
    seen = visit(None)
    bodies: list[bytes] = []
    seen.page.on("response", lambda response: "/api/events" not in response.url and bodies.append(response.body()))
    seen.sign_in()
    expect(seen.live).to_have_text("live")
    for view in ("Institutions", "Dead letters", "Versions", "Audit"):
        seen.go(view)
    seen.page.wait_for_load_state()
    own = load(federation.folder)
    secrets = [*own.users.values(), *PASSWORDS.values(), (federation.folder / "run.secret").read_text().strip(), "scrypt"]
    assert len(secrets) > len(INSTITUTIONS)
    everything = b"".join(bodies).decode(errors="replace") + seen.page.content()
    assert [secret for secret in secrets if secret and secret in everything] == []


@pytest.mark.long
def test_more_tabs_than_a_browser_has_lines_are_served_as_those_that_nobody_sees_let_theirs_go(visit):
    seen = visit()
    for _ in range(7):
        before = seen.page
        before.evaluate(HIDE)
        seen.page = seen.context.new_page()
        seen.page.goto(seen.url + "/")
        expect(seen.live).to_have_text("live")
    before.evaluate(SHOW)
    expect(before.locator("#link")).to_have_text("live")
