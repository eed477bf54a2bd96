"""The one seam at which pika's exceptions end and fedqueue's begin."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pika import exceptions

from shared.errors import BrokerUnavailableError, FederationError, MalformedMessageError, PublishRefusedError, TopologyError

# Access refused, not found, resource locked, precondition failed, not allowed, not implemented.
_A_PERSON_MUST_LOOK = frozenset({403, 404, 405, 406, 530, 540})
# The same codes, for what passes by itself: an acknowledgement that took too long, a node or virtual host that is restarting,
# a stream's replica that is not up yet, connections of ours that the broker has not yet found dead.
_PASSING = re.compile(r"delivery acknowledgement|is down|stopped by supervisor|does not have a replica|connection limit")

_REFUSED = (TopologyError, "the broker refused the user, its password or its certificate; a removed user is refused too")
_UNWRITABLE = (MalformedMessageError, "the message cannot be written as AMQP")
_MEANINGS: dict[type[BaseException], tuple[type[FederationError], str]] = {
    exceptions.ProbableAuthenticationError: _REFUSED,
    exceptions.AuthenticationError: _REFUSED,
    exceptions.ProbableAccessDeniedError: (TopologyError, "the broker has no such virtual host, or the user no right to it"),
    exceptions.NackError: (PublishRefusedError, "the broker did not take the message (queue full, or electing a leader)"),
    exceptions.UnroutableError: (TopologyError, "no queue is bound to that exchange; `fedqueue broker apply` creates it"),
    exceptions.ConnectionBlockedTimeout: (BrokerUnavailableError, "the broker is out of memory or disk: free some there"),
    exceptions.ConsumerCancelled: (TopologyError, "the queue was deleted"),
    exceptions.ShortStringTooLong: _UNWRITABLE,
    exceptions.UnsupportedAMQPFieldException: _UNWRITABLE,
}

# What OpenSSL says when a handshake fails, wherever pika keeps it.
_IN_A_HANDSHAKE: tuple[tuple[str, type[FederationError], str], ...] = (
    (
        r"(Hostname|IP address) mismatch",
        TopologyError,
        "the broker's certificate is for other host names: write one of them in the url, "
        "or have the operator issue it for this one (`fedqueue ca server --host NAME`)",
    ),
    (
        r"verify failed: certificate (has expired|is not yet valid)",
        BrokerUnavailableError,
        "the broker's certificate has expired, or this clock is wrong: the operator must renew it (`fedqueue ca server`)",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED",
        TopologyError,
        "this broker is not of our federation, for another authority than that of ca_file vouches for it: "
        "correct the url, or take the kit's ca.pem",
    ),
    (
        r"(?i)alert.unknown.ca",
        TopologyError,
        "the broker does not know the authority of our certificate: take certificate and key from this federation's kit",
    ),
    (
        r"(?i)alert.certificate.expired",
        TopologyError,
        "our certificate has expired, or a clock is wrong: ask the operator for a renewed one",
    ),
    (r"(?i)alert.certificate.revoked", TopologyError, "our certificate was revoked: ask the operator for another one"),
    (r"(?i)certificate.required", TopologyError, "the broker demands a certificate, and none was shown"),
    (
        r"(?i)alert.(bad|unsupported|unknown).certificate|alert.certificate.unknown|alert.handshake.failure",
        TopologyError,
        "the broker refused our certificate: take certificate and key from this federation's kit",
    ),
    (
        r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE",
        TopologyError,
        "no TLS is spoken at that port: correct the port, which is 5671 as a rule",
    ),
)
_HUNG_UP = "the broker hung up at once: it may want TLS (amqps:// and the kit's certificate), or be no RabbitMQ"

# Outside pika's own tree: name resolution and sockets (OSError), a call on what was just closed (ValueError, StopIteration),
# an assertion inside pika when a connection dies between two of its steps.
FOREIGN = (OSError, ValueError, StopIteration, AssertionError)
PIKA = (exceptions.AMQPError, exceptions.ChannelError, exceptions.ReentrancyError)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raises what pika raises inside as an error of fedqueue; `doing` says what was tried, and with what."""
    try:
        yield
    except (*PIKA, *FOREIGN) as error:
        raise translate(error, doing) from error


def translate(error: BaseException, doing: str) -> FederationError:
    """The error of fedqueue that tells the reader of `doing` what to do about this one."""
    if isinstance(error, exceptions.ChannelClosedByBroker | exceptions.ConnectionClosedByBroker):
        return _closed(error, doing)
    if isinstance(error, exceptions.ProbableAccessDeniedError) and _PASSING.search(str(error)):
        return BrokerUnavailableError(f"{doing}: {error}")
    for pattern, ours, said in _IN_A_HANDSHAKE:
        if re.search(pattern, str(error)):
            return ours(f"{doing}: {said}")
    for kind, (ours, said) in _MEANINGS.items():
        if isinstance(error, kind):
            return ours(f"{doing}: {said}")
    return BrokerUnavailableError(f"{doing}: {_text(error)}")


def _closed(error: exceptions.ChannelClosedByBroker | exceptions.ConnectionClosedByBroker, doing: str) -> FederationError:
    passing = _PASSING.search(error.reply_text) is not None
    kind = TopologyError if error.reply_code in _A_PERSON_MUST_LOOK and not passing else BrokerUnavailableError
    return kind(f"{doing}: {error.reply_code} {error.reply_text}")


def _text(error: BaseException) -> str:
    if type(error) is exceptions.AMQPConnectionError and not str(error):
        return "no broker answers there; start it, or correct the url in the settings"
    if type(error) is exceptions.IncompatibleProtocolError:
        return f"{_HUNG_UP} ({error})"
    return str(error) or type(error).__name__
