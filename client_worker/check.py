"""`fedqueue-client --check`: what is wrong with keys, certificate, clock, data and connection, told in words before a start."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from broker_config.connection import ConnectionSettings, connect, guard_of
from broker_config.keyring import load_identity
from broker_config.service import process_name
from broker_config.streams import LineageReader
from broker_config.tls import TlsFiles
from broker_config.topology import LINEAGE
from client_worker.charging import allowed_noise
from client_worker.local_work import LocalData, Member
from client_worker.policy import require_task
from client_worker.standing import require_membership
from shared.broker import Broker, Delivery
from shared.errors import SettingsError, TopologyError
from shared.messages import Entry, ManifestRecord

CLOCKS_APART = timedelta(minutes=1)
"""Certificates and reports of times stand a clock that is off by less."""


def require_credentials(settings: ConnectionSettings, now: datetime) -> None:
    """Raises SettingsError with a line for everything that is wrong with keys, trust and certificate."""
    faults = [*_told(partial(guard_of, settings))]
    if settings.tls is not None:
        faults += _told(partial(settings.tls.context, settings.user)) or _certificate_faults(settings.tls, now)
    if faults:
        raise SettingsError("\n".join(faults))


def require_broker(settings: ConnectionSettings, member: Member, data: LocalData, now: datetime) -> str:
    """Logs in, reads the lineage and judges its plan; says what was found. Raises what a start would raise."""
    broker = connect(settings, name=process_name("fedqueue-client", member.institution, "check"))
    written_at: list[datetime] = []
    reader = LineageReader(broker, on_record=lambda _, delivery: written_at.append(_written(delivery, now)))
    try:
        _catch_up(reader, broker)
    finally:
        broker.close()
    head, lineage = reader.current()
    entry = require_membership(lineage, member)
    _require_own_keys(entry, settings.keys_folder)
    if lineage.plan is not None:
        require_task(lineage.plan, task_hash=data.task_hash)
        allowed_noise(lineage.plan, member.policy, data)
    return "\n".join([_found(member, head), *_clock_doubts(written_at, now)])


def doubtful_count(stated: int | None, units: int) -> str | None:
    """A warning for this institution alone where its public number is not even near its rows; None where it may do."""
    if stated is None or units / 2 <= stated <= 2 * units:
        return None
    return (
        f"warning: num_examples is {stated}, the training file holds {units} records or persons. The public number divides every "
        "step and weighs every update: too small makes steps and noise too large, too large makes them too small"
    )


def _told(look: Callable[[], object]) -> list[str]:
    try:
        look()
    except SettingsError as error:
        return [str(error)]
    return []


def _certificate_faults(files: TlsFiles, now: datetime) -> list[str]:
    own, authority = _certificate(files.certificate), _certificate(files.authority)
    return [*_time_faults(files.certificate, own, now), *_issuer_faults(files, own, authority)]


def _certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def _time_faults(file: Path, own: x509.Certificate, now: datetime) -> Iterator[str]:
    here = f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
    if now > own.not_valid_after_utc:
        yield f"{file} ended on {own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: ask the operator for a renewal ({here})"
    if now < own.not_valid_before_utc:
        yield f"{file} begins on {own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, and {here}: set the clock"


def _issuer_faults(files: TlsFiles, own: x509.Certificate, authority: x509.Certificate) -> Iterator[str]:
    try:
        own.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        yield f"{files.certificate} was not issued by the authority in {files.authority}: take both from the same kit"


def _catch_up(reader: LineageReader, broker: Broker) -> None:
    """Raises TopologyError where there is a lineage, and nobody whom we believe has written it."""
    try:
        reader.catch_up()
    except TopologyError:
        for delivery in broker.read(LINEAGE, "last", count=1, idle_seconds=1.0):
            if delivery.fault is not None:
                raise TopologyError(
                    f"the broker's lineage was written by nobody whom keys/trust.json names ({delivery.fault}): the kit is of "
                    "another federation, or this is not the broker of this one; ask the operator"
                ) from None
        raise


def _written(delivery: Delivery, now: datetime) -> datetime:
    """When a manifest was published, by its publisher's clock."""
    at_ms = delivery.message.headers.get("at_ms")
    return datetime.fromtimestamp(at_ms / 1000, now.tzinfo) if isinstance(at_ms, int) else now


def _clock_doubts(written_at: list[datetime], now: datetime) -> Iterator[str]:
    if written_at and written_at[-1] - now > CLOCKS_APART:
        behind = (written_at[-1] - now).total_seconds()
        yield f"warning: this machine's clock is {behind:.0f} s behind the aggregator's; one of the two is to be set"


def _require_own_keys(entry: Entry, folder: Path | None) -> None:
    """Raises SettingsError where the operator has admitted other message keys than these."""
    if folder is None:
        if entry.signing_key:
            raise SettingsError("this federation signs its messages: name keys_folder below [broker], as the kit does")
        return
    own = load_identity(folder).public
    if (entry.signing_key, entry.sealing_key) != (own.signing, own.sealing):
        raise SettingsError(
            f"the operator has admitted other message keys than those in {folder}: unpack the newest kit beside the keys that "
            "its request was made from, or ask the operator to remove this institution and add it again"
        )


def _found(member: Member, head: ManifestRecord) -> str:
    return f"ok: {member.institution} in run {head.manifest.run_id}, version {head.manifest.version}, {head.manifest.phase}"
