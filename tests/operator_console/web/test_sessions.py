"""Accounts, sessions and slowed logins, with a clock that the test turns."""

import json
import stat

import pytest

from operator_console.web import accounts as accounts_module
from operator_console.web import sessions as sessions_module
from operator_console.web.accounts import AccountBook
from operator_console.web.attempts import Attempts
from operator_console.web.sessions import Sessions
from shared.errors import SettingsError

WORD, OTHER = "a long sentence", "another sentence"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def cheap_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of a second for each password would be most of these tests' time."""
    monkeypatch.setitem(accounts_module._SCRYPT, "n", 16)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(tmp_path) -> AccountBook:
    made = AccountBook(tmp_path / "console" / "users.json")
    made.add("olga", "operator", WORD)
    return made


@pytest.fixture
def sessions(book, clock) -> Sessions:
    return Sessions(book, clock, idle_seconds=100, absolute_seconds=250)


def begin(sessions: Sessions, book: AccountBook) -> str:
    return sessions.begin("olga", book.verify("olga", WORD))


def test_only_the_right_password_opens_and_no_file_holds_it(book):
    assert book.verify("olga", WORD).role == "operator"
    assert book.verify("olga", OTHER) is None
    assert book.verify("nobody", WORD) is None
    text = book.file.read_text()
    assert WORD not in text
    assert json.loads(text)["users"]["olga"].keys() == {"role", "salt", "hash"}
    assert stat.S_IMODE(book.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(book.file.parent.stat().st_mode) == 0o700


def test_the_same_password_of_two_people_has_two_hashes_and_a_composed_letter_is_one_letter(book):
    book.add("victor", "viewer", WORD)
    book.add("zoe", "viewer", "caf\N{LATIN SMALL LETTER E WITH ACUTE} au lait noir")
    assert book.all()["olga"].hash != book.all()["victor"].hash
    assert book.verify("zoe", "cafe\N{COMBINING ACUTE ACCENT} au lait noir")


def test_a_name_that_is_not_there_costs_as_much_work_as_one_that_is(book, monkeypatch):
    asked, hashed = [], accounts_module._hashed
    monkeypatch.setattr(accounts_module, "_hashed", lambda *values: asked.append(len(values[1])) or hashed(*values))
    book.verify("olga", OTHER)
    book.verify("nobody", OTHER)
    assert asked == [16, 16]


@pytest.mark.parametrize("name", ["", "-x", "a" * 65, "<b>", "a b", "a\n"])
def test_a_name_is_a_plain_word(book, name):
    with pytest.raises(SettingsError, match="is no name for a user"):
        book.add(name, "viewer", WORD)


def test_what_cannot_be_done_to_an_account_is_said(book):
    for attempt, told in (
        (lambda: book.add("olga", "viewer", WORD), "olga is a user already"),
        (lambda: book.add("short", "viewer", "elevenchars"), "fewer than 12 characters"),
        (lambda: book.add("long", "viewer", "x" * 1025), "more than 1024 bytes"),
        (lambda: book.remove("nobody"), "nobody is not a user"),
        (lambda: book.set_password("nobody", WORD), "nobody is not a user"),
    ):
        with pytest.raises(SettingsError, match=told):
            attempt()


def test_a_file_of_users_that_others_can_read_or_that_is_broken_lets_nobody_in(book):
    book.file.chmod(0o644)
    with pytest.raises(SettingsError, match="can be read by other users"):
        AccountBook(book.file).all()
    book.file.chmod(0o600)
    book.file.write_text('{"schema": 1, "users": {"olga": {"role": "king", "salt": "secretsalt", "hash": ""}}}')
    with pytest.raises(SettingsError, match=r"is not a file of users") as broken:
        AccountBook(book.file).all()
    assert "secretsalt" not in str(broken.value)


def test_a_session_ends_when_it_is_idle_and_at_last_in_any_case(sessions, book, clock):
    token = begin(sessions, book)
    clock.now += 100
    assert sessions.find(token).name == "olga"
    clock.now += 100
    assert sessions.find(token)
    clock.now += 50
    assert sessions.find(token)
    clock.now += 1
    assert sessions.find(token) is None
    token = begin(sessions, book)
    clock.now += 101
    assert sessions.find(token) is None


def test_what_a_page_asks_for_by_itself_keeps_no_session_alive(sessions, book, clock):
    token = begin(sessions, book)
    for _ in range(2):
        clock.now += 50
        assert sessions.find(token, used=False)
    clock.now += 1
    assert sessions.find(token, used=False) is None


def test_sessions_end_with_their_account_its_password_and_its_role(sessions, book):
    for change in (
        lambda: book.set_password("olga", OTHER),
        lambda: book.remove("olga"),
        lambda: (book.remove("olga"), book.add("olga", "viewer", WORD)),
    ):
        token = begin(sessions, book)
        assert sessions.find(token)
        change()
        assert sessions.find(token) is None
        if "olga" in book.all():
            book.remove("olga")
        book.add("olga", "operator", WORD)


def test_every_login_has_a_token_of_its_own_and_one_logout_ends_one_session(sessions, book):
    first, second = begin(sessions, book), begin(sessions, book)
    assert first != second
    assert sessions.find(first).csrf != sessions.find(second).csrf
    sessions.end(first)
    assert sessions.find(first) is None
    assert sessions.find(second)
    assert sessions.find("") is None
    assert sessions.find("no token of ours") is None


def test_of_too_many_sessions_the_one_that_was_unused_for_longest_ends(sessions, book, clock, monkeypatch):
    monkeypatch.setattr(sessions_module, "MOST_SESSIONS", 2)
    first, second = begin(sessions, book), begin(sessions, book)
    clock.now += 1
    assert sessions.find(first)
    third = begin(sessions, book)
    assert [sessions.find(token) is not None for token in (first, second, third)] == [True, False, True]


def test_wrong_passwords_are_slowed_by_name_up_to_a_minute_and_forgotten_after_a_quarter_of_an_hour(clock):
    attempts = Attempts(clock)
    pauses = []
    for _ in range(12):
        attempts.failed("olga", "10.0.0.1")
        pauses.append(attempts.pause_seconds("olga", "10.0.0.2"))
        clock.now += pauses[-1]
    assert pauses == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert attempts.pause_seconds("olga", "10.0.0.2") == 0
    attempts.failed("olga", "10.0.0.1")
    assert attempts.pause_seconds("victor", "10.0.0.2") == 0
    clock.now += 901
    assert attempts.pause_seconds("olga", "10.0.0.2") == 0
    attempts.failed("olga", "10.0.0.1")
    assert attempts.pause_seconds("olga", "10.0.0.2") == 0


def test_one_address_that_tries_many_names_is_slowed_too(clock):
    attempts = Attempts(clock)
    for number in range(20):
        assert attempts.pause_seconds("next", "10.0.0.1") == 0
        attempts.failed(f"name {number}", "10.0.0.1")
    assert attempts.pause_seconds("next", "10.0.0.1") == 1
    assert attempts.pause_seconds("next", "10.0.0.2") == 0


def test_a_login_forgives_the_name_but_not_the_address(clock):
    attempts = Attempts(clock)
    for _ in range(20):
        attempts.failed("olga", "10.0.0.1")
    attempts.succeeded("olga")
    assert attempts.pause_seconds("olga", "10.0.0.2") == 0
    assert attempts.pause_seconds("olga", "10.0.0.1") == 1


def test_what_is_remembered_of_failures_has_a_bound(clock):
    attempts = Attempts(clock)
    for number in range(12_000):
        attempts.failed(f"name {number}", "10.0.0.1")
    assert len(attempts._failures) == 10_000
