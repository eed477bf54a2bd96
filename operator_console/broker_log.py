"""RabbitMQ's log, 3.10 and 4.x, as events: who was refused what. Pure.

RabbitMQ puts time, level and process before every line, also those that a stranger's text makes by a newline. So an entry is
all lines with one such beginning, and what looks like an entry inside a line is none. What a stranger can choose within an
entry: the name of a login that failed, of a virtual host, queue or exchange, and of its connection. Logins are therefore read
where none of these can stand, or from the entry that says the login was granted.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from typing import Any

from operator_console.audit import Event

MOST_LINES = 60
"""Of an entry; reports of a crash have more, and say no more of who tried what."""

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3,6}[+-]\d\d:\d\d) \[(\w+)\] (<\d+\.\d+\.\d+>) ?(.*)", re.DOTALL)
_PEER = r"(?P<address>\S{1,64}:\d{1,5}) -> \S{1,64}:\d{1,5}"
_USER = r"user: '(?P<user>[^'\n]*)'"


@dataclass(frozen=True, slots=True)
class Entry:
    """What the broker said at once; `process` is that of the connection or channel it is about."""

    at: datetime
    level: str
    process: str
    text: str


def broker_events(lines: Iterable[str]) -> Iterator[Event]:
    """What the lines of a log tell of refusals, of logins made and deleted, and of connections."""
    granted: dict[str, str] = {}
    for entry in entries(lines):
        for shape, read in _SHAPES:
            match = shape.match(entry.text)
            if match is not None:
                found = read(entry, match.groupdict(), granted)
                yield from [found] if found else []
                break


def entries(lines: Iterable[str]) -> Iterator[Entry]:
    """The entries; a line without a beginning of its own is passed over."""
    parts = (match.groups() for match in map(_LINE.match, lines) if match)
    for (at, level, process), group in groupby(parts, key=lambda part: part[:3]):
        texts = [part[3].rstrip("\r\n") for _, part in zip(range(MOST_LINES), group, strict=False)]
        yield Entry(datetime.fromisoformat(at), level, process, "\n".join(texts))


Found = dict[str, Any]
"""The named groups of a shape."""


def _channel_error(entry: Entry, found: Found, _granted: dict[str, str]) -> Event:
    return _refused(entry, found, who=found["user"], tried=f"{found['operation']}{_target(found['reason'])}")


def _login_refused(entry: Entry, found: Found, _granted: dict[str, str]) -> Event:
    tried = f"log in by {found['mechanism']}"
    return _refused(entry, found, who=found["claimed"] or "", proven=False, tried=tried)


def _connection_error(entry: Entry, found: Found, granted: dict[str, str]) -> Event:
    """An error of a connection: which it is stands behind the head, in which the connection's own name may stand."""
    who = granted.get(entry.process, "") or _single_user(entry.text) or _last_word(entry.text)
    body = _body(entry.text)
    exception = _EXCEPTION.match(body)
    if exception is not None:
        return _refused(entry, found | exception.groupdict(), who=who, tried=_said(exception["operation"]))
    return _refused(entry, found | {"reason": body}, who=who, tried=f"connect{_target(body)}")


def _closed(entry: Entry, found: Found, granted: dict[str, str]) -> Event:
    who, body = granted.pop(entry.process, ""), _body(entry.text)
    if entry.level == "info" or who:
        got = body if entry.level != "info" else "closed"
        return Event(entry.at, "broker", "connection", who=who, address=found["address"], tried="close", got=got)
    return _refused(entry, found | {"reason": body}, tried="connect without a login")


def _accepted(entry: Entry, _found: Found, granted: dict[str, str]) -> None:
    """A process's number comes again after a restart of the broker; its login does not."""
    granted.pop(entry.process, None)


def _granted(entry: Entry, found: Found, granted: dict[str, str]) -> Event:
    granted[entry.process] = found["user"]
    tried = f"connect to vhost '{found['vhost']}'"
    return Event(entry.at, "broker", "connection", who=found["user"], address=found["address"], tried=tried, got="granted")


def _alert(entry: Entry, found: Found, _granted: dict[str, str]) -> Event:
    detail = entry.text.partition("\n")[2].strip(" -\n")
    tried = "TLS handshake" if found["side"] == "generated" else "TLS handshake (ended by the other side)"
    return _refused(entry, {"reason": f"{found['alert']}{f' ({detail})' if detail else ''}"}, tried=tried)


def _management_login(entry: Entry, found: Found, _granted: dict[str, str]) -> Event:
    return _refused(entry, found, who=found["claimed"] or "", proven=False, tried="log in to the management API")


def _management_error(entry: Entry, found: Found, _granted: dict[str, str]) -> Event:
    return _refused(entry, found, who=found["user"], tried=f"management API: {found['operation']}{_target(found['reason'])}")


def _login_changed(entry: Entry, found: Found, _granted: dict[str, str]) -> Event:
    return Event(entry.at, "broker", "order", tried=f"{found['change'].lower()} the login {found['login']}", got="done")


def _refused(entry: Entry, found: Found, *, who: str = "", proven: bool = True, tried: str) -> Event:
    code = f"{found['code']}: " if found.get("code") else ""
    got = code + _INDENT.sub(" ", found["reason"]).strip()
    address = found.get("address", "")
    return Event(entry.at, "broker", "refused", who=who, proven=proven, address=address, tried=tried, got=got)


_EXCEPTION = re.compile(r" ?operation (?P<operation>\S+) caused a connection exception (?P<code>\w+): (?P<reason>.*)", re.DOTALL)
_ACCESS = re.compile(r"access to ((?:queue|exchange|topic|vhost) '.*?')(?: in vhost '[^']*')? refused", re.DOTALL)
_INDENT = re.compile(r"\n {2,}")
"""How a term of Erlang goes on in the next line."""
_HEAD_END = re.compile(r"(?:, state: \w+\)(?:, channel \d+)?|, duration: '[^'\n]*'\)|'\)|\d\)):\n")
_HEAD_USER = re.compile(rf", {_USER}(?:, state: \w+\)(?:, channel \d+)?|, duration: '[^'\n]*'\)|\)):\n")
_REFUSED_FOR = re.compile(r" refused for user '([^'\n]*)'(?:: [^'\n]*)?$")


def _body(text: str) -> str:
    """What stands behind the last end of a head; a stranger who writes such an end hides only its own words."""
    ends = [match.end() for match in _HEAD_END.finditer(text)]
    return text[ends[-1] :] if ends else ""


def _single_user(text: str) -> str:
    """The login of an error's head, unless the name of the connection brings a second one into it."""
    named = _HEAD_USER.findall(text)
    return str(named[0]) if len(named) == 1 else ""


def _last_word(text: str) -> str:
    match = _REFUSED_FOR.search(text)
    return match[1] if match else ""


def _target(reason: str) -> str:
    match = _ACCESS.search(reason)
    return f" on {match[1]}" if match else ""


def _said(operation: str) -> str:
    return "an open connection" if operation == "none" else operation


_REFUSED_LOGIN = r"(?P<mechanism>\S+) login refused: (?:user '(?P<claimed>.*)' - )?(?P<reason>[^\n]*)$"
_Read = Callable[[Entry, Found, dict[str, str]], Event | None]
_compiled = partial(re.compile, flags=re.DOTALL)
_SHAPES: tuple[tuple[re.Pattern[str], _Read], ...] = (
    (re.compile(r"accepting AMQP connection "), _accepted),
    (
        _compiled(
            rf"Channel error on connection <[\d.]+> \({_PEER}, vhost: '[^'\n]*', {_USER}\), channel \d+:\n"
            r" ?operation (?P<operation>\S+) caused a channel exception (?P<code>\w+): (?P<reason>.*)"
        ),
        _channel_error,
    ),
    (_compiled(rf"Error on AMQP connection <[\d.]+> \({_PEER}, state: starting\):\n{_REFUSED_LOGIN}"), _login_refused),
    (_compiled(rf"Error on AMQP connection <[\d.]+> \({_PEER}"), _connection_error),
    (_compiled(rf"closing AMQP (?:1\.0 )?connection (?:<[\d.]+> )?\({_PEER}"), _closed),
    (
        _compiled(
            rf"connection (?:<[\d.]+> \()?{_PEER}(?:\)?: | - .*: )user '(?P<user>[^'\n]*)'"
            r" authenticated and granted access to vhost '(?P<vhost>[^'\n]*)'$"
        ),
        _granted,
    ),
    (_compiled(r"TLS \w+: In state \S+ .{0,120}?(?P<side>generated|received) \w+ ALERT: \w+ - (?P<alert>[^\n]*)"), _alert),
    (_compiled(r"HTTP access denied: (?:user '(?P<claimed>.*)' - )?(?P<reason>[^\n]*)$"), _management_login),
    (
        _compiled(r"(?P<operation>[A-Z][\w ]{0,40}) error: (?P<reason>.* refused for user '(?P<user>[^'\n]*)')$"),
        _management_error,
    ),
    (re.compile(r"(?P<change>Created|Deleted) user '(?P<login>[^'\n]*)'$"), _login_changed),
)
