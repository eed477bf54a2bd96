"""What a running broker holds against what it should hold, both as RabbitMQ's definitions. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broker_config.topology import journal_queue

Entry = Mapping[str, Any]

EXTRA = "not part of the topology"


@dataclass(frozen=True, slots=True)
class Drift:
    """One object that is not as the topology says."""

    kind: str
    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.problem}"


@dataclass(frozen=True, slots=True)
class _Comparison:
    kind: str
    name: Callable[[Entry], str]
    fields: tuple[str, ...]
    is_extra: Callable[[str], bool]


def _ours(name: str) -> bool:
    return name.startswith("fl.")


def _ours_but_for_journals(name: str) -> bool:
    # the journal of a removed institution stays, for replays
    return _ours(name) and not name.startswith(journal_queue(""))


def _route(binding: Entry) -> str:
    return f"{binding['source']} -> {binding['destination_type']} {binding['destination']}"


_COMPARISONS = (
    _Comparison("permissions", lambda each: str(each["user"]), ("configure", "write", "read"), lambda _: True),
    _Comparison("policies", lambda each: str(each["name"]), ("pattern", "definition", "priority", "apply-to"), lambda _: True),
    _Comparison("exchanges", lambda each: str(each["name"]), ("type", "durable", "auto_delete", "internal"), _ours),
    _Comparison("queues", lambda each: str(each["name"]), ("durable", "auto_delete", "arguments"), _ours_but_for_journals),
    _Comparison("bindings", _route, (), lambda _: True),
)


def drifts(expected: Mapping[str, Any], actual: Mapping[str, Any], *, vhost: str, administrator: str) -> list[Drift]:
    """All differences in one virtual host, and of the logins that belong to it; the administrator's rights are its own."""
    found = list(_user_drifts(expected["users"], actual["users"]))
    if vhost not in [each["name"] for each in actual["vhosts"]]:
        return [*found, Drift("vhosts", vhost, "missing")]
    for comparison in _COMPARISONS:
        want = {comparison.name(each): each for each in expected[comparison.kind]}
        entries = [each for each in actual[comparison.kind] if each["vhost"] == vhost and each.get("user") != administrator]
        found.extend(_compare(comparison, want, {comparison.name(each): each for each in entries}))
    return found


def _compare(comparison: _Comparison, want: Mapping[str, Entry], have: Mapping[str, Entry]) -> Iterator[Drift]:
    for name, entry in want.items():
        if name not in have:
            yield Drift(comparison.kind, name, "missing")
            continue
        for key in comparison.fields:
            if have[name][key] != entry[key]:
                yield Drift(comparison.kind, name, f"{key} is {have[name][key]!r}, not {entry[key]!r}")
    for name in have.keys() - want.keys():
        if comparison.is_extra(name):
            yield Drift(comparison.kind, name, EXTRA)


def _user_drifts(want: Sequence[Entry], have: Sequence[Entry]) -> Iterator[Drift]:
    known = {each["name"]: each for each in have}
    for entry in want:
        name = entry["name"]
        if name not in known:
            yield Drift("users", name, "missing")
        elif _tags(known[name]) != _tags(entry):
            yield Drift("users", name, f"has the tags {sorted(_tags(known[name]))}, not {sorted(_tags(entry))}")
        elif known[name].get("limits", {}) != entry["limits"]:
            yield Drift("users", name, f"has the limits {known[name].get('limits', {})}, not {entry['limits']}")


def _tags(user: Entry) -> set[str]:
    tags = user["tags"]
    return {tag for tag in (tags.split(",") if isinstance(tags, str) else tags) if tag}
