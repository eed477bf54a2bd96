"""Until when the certificates of a federation hold, and which of them end soon."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from broker_config.authority import AUTHORITY_KEY_FILE, CA_FILE, CERTIFICATE_FILE, Authority, expiry_of
from broker_config.definitions import OPERATOR
from broker_config.tls import WARNED_BEFORE
from operator_console.federation_folder import FederationFolder

THE_AUTHORITY = "the authority itself"


def expiries(folder: FederationFolder) -> dict[str, datetime]:
    """The end (UTC) of the newest certificate of everybody who has one that was not revoked: logins, brokers, the authority.

    A broker goes by `server:HOST`. Empty where the broker is reached with passwords. Where the authority's key is on another
    computer: those of the authority and of the operator alone.
    """
    if not folder.has_tls or not folder.authority.exists():
        return {}
    if not (folder.authority / AUTHORITY_KEY_FILE).exists():
        places = {THE_AUTHORITY: folder.authority / CA_FILE, OPERATOR: folder.tls(OPERATOR) / CERTIFICATE_FILE}
        return {who: expiry_of(file.read_bytes()) for who, file in places.items() if file.exists()}
    authority = Authority.open(folder.authority)
    ends = {THE_AUTHORITY: expiry_of(authority.certificate)}
    for record in authority.issued():
        if record.revoked is None:
            ends[record.user] = max(record.not_after, ends.get(record.user, record.not_after))
    return ends


def warnings_of(ends: Mapping[str, datetime], now: datetime) -> list[str]:
    """A sentence for each certificate that is over or ends within 30 days, the first to end first."""
    near = sorted((end, who) for who, end in ends.items() if end - now <= WARNED_BEFORE)
    return [f"the certificate of {who} {_when(end - now)} ({end:%Y-%m-%d}): {remedy_for(who)}" for end, who in near]


def _when(left: timedelta) -> str:
    if left <= timedelta(0):
        return "is over"
    return "ends today" if left < timedelta(days=1) else f"ends in {left.days} day{'s' if left.days > 1 else ''}"


def remedy_for(who: str) -> str:
    """What gives somebody another certificate."""
    if who == THE_AUTHORITY:
        return "nobody can connect after that; found another federation in time"
    return "`fedqueue ca server`" if ":" in who else f"`fedqueue institution renew {who}`"
