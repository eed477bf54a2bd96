"""What `fedqueue doctor` finds on this machine: who can read secrets, room on the disk, the clock, what is installed."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

from broker_config import logins as login_file
from broker_config.secret_files import is_open_to_others
from operator_console.finding import Finding

SECRETS = (
    *(login_file.FILE, "run.secret", "ca/*.key", "**/key.pem", "**/signing.pem", "**/sealing.pem", "**/password", "kits/*"),
    *(
        "institutions/*/ledger.sqlite",
        "broker/n*/rabbitmq.conf",
        "broker/n*/node.json",
        "console/users.json",
        "console/audit.jsonl",
    ),
)
"""Files of a federation's folder that nobody but its owner may read."""
LIBRARIES = ("fedqueue", "pika", "msgpack", "pydantic", "torch", "opacus")
ROOM_BYTES = 256 << 20
"""A state folder needs so much more than what it holds: a checkpoint is written beside the last one."""
CLOCKS_APART = timedelta(minutes=1)
"""Certificates and times in reports stand a clock that is off by less."""


def secret_files(folder: Path) -> Iterator[Finding]:
    """Whether others can read a file that holds a secret."""
    open_to_others = [file for name in SECRETS for file in sorted(folder.glob(name)) if is_open_to_others(file)]
    for file in open_to_others:
        yield Finding("secret files", False, f"{file} is open to other users of this machine", f"chmod 600 {file}")
    if not open_to_others:
        yield Finding("secret files", True, "only their owner can read them")


def disk(folder: Path) -> Iterator[Finding]:
    """Whether the disk of a state folder has room for another checkpoint."""
    try:
        free = shutil.disk_usage(folder).free
        held = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    except OSError as error:
        yield Finding("disk", False, f"{folder}: {error.strerror}", f"mend {folder}, or name another state_folder")
        return
    need = held + ROOM_BYTES
    if free < need:
        remedy = "make room: an aggregator that cannot write its checkpoint commits nothing"
        yield Finding("disk", False, f"{folder} has {free:,} bytes free and may need {need:,}", remedy)
    else:
        yield Finding("disk", True, f"{folder} has {free:,} bytes free")


def clock(there: datetime, here: datetime) -> Iterator[Finding]:
    """Whether this machine and the broker's agree about the time."""
    apart = here - there
    if abs(apart) <= CLOCKS_APART:
        yield Finding("clock", True, f"within {CLOCKS_APART.seconds} s of the broker's")
        return
    direction = "ahead of" if apart > timedelta() else "behind"
    what = f"this machine is {abs(apart).total_seconds():.0f} s {direction} the broker's: {here:%Y-%m-%d %H:%M:%S} here"
    yield Finding("clock", False, what, "set the wrong one of the two (timedatectl): certificates and waiting times go by it")


def libraries(names: Sequence[str] = LIBRARIES) -> Iterator[Finding]:
    """The libraries that this command and the workers on this machine use."""
    missing, there = [], []
    for library in names:
        try:
            there.append(f"{library} {metadata.version(library)}")
        except metadata.PackageNotFoundError:
            missing.append(library)
    if missing:
        yield Finding("libraries", False, f"not installed: {', '.join(missing)}", "make setup")
    else:
        yield Finding("libraries", True, ", ".join(there))


def members_versions(connections: Sequence[Mapping[str, Any]], ours: str) -> Iterator[Finding]:
    """Which fedqueue everybody runs who is connected, and whether all fit together: the first two numbers must be ours."""
    told = {str(each.get("user")): _version_of(each) for each in connections if _version_of(each)}
    other = {who: version for who, version in told.items() if version.split(".")[:2] != ours.split(".")[:2]}
    for who, version in sorted(other.items()):
        remedy = "bring all to one version, the aggregator first; docs/upgrades.md says what may differ, and for how long"
        yield Finding("versions in use", False, f"{who} runs fedqueue {version}, this is {ours}", remedy)
    if not other:
        named = ", ".join(f"{who} {version}" for who, version in sorted(told.items())) or "nobody is connected"
        yield Finding("versions in use", True, f"this is {ours}; connected: {named}" if told else named)


def _version_of(connection: Mapping[str, Any]) -> str:
    properties = connection.get("client_properties") or {}
    return str(properties.get("version", "")) if properties.get("product") == "fedqueue" else ""
