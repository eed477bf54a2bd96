"""No exception of pika passes the seam."""

import inspect
import socket

import pytest
from pika import exceptions

from broker_config.pika_errors import translated
from shared.errors import BrokerUnavailableError, FederationError, MalformedMessageError, PublishRefusedError, TopologyError

_ARGUMENTS = {
    exceptions.ConnectionClosed: (320, "CONNECTION_FORCED"),
    exceptions.ConnectionClosedByBroker: (320, "CONNECTION_FORCED"),
    exceptions.ConnectionClosedByClient: (200, "bye"),
    exceptions.ChannelClosed: (404, "NOT_FOUND"),
    exceptions.ChannelClosedByBroker: (404, "NOT_FOUND"),
    exceptions.ChannelClosedByClient: (0, "bye"),
    exceptions.UnroutableError: ([],),
    exceptions.NackError: ([],),
    exceptions.BodyTooLongError: (2, 1),
    exceptions.ProtocolVersionMismatch: ("0-8", "0-9"),
    exceptions.AuthenticationError: ("PLAIN",),
}

EXPECTED = {
    exceptions.AuthenticationError: TopologyError,
    exceptions.ProbableAuthenticationError: TopologyError,
    exceptions.ProbableAccessDeniedError: TopologyError,
    exceptions.ChannelClosedByBroker: TopologyError,
    exceptions.UnroutableError: TopologyError,
    exceptions.ConsumerCancelled: TopologyError,
    exceptions.NackError: PublishRefusedError,
    exceptions.ShortStringTooLong: MalformedMessageError,
    exceptions.UnsupportedAMQPFieldException: MalformedMessageError,
}

OF_PIKA = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, Exception)]


def translation(error: BaseException) -> FederationError:
    with pytest.raises(FederationError) as caught, translated("doing"):
        raise error
    assert str(caught.value).startswith("doing: ")
    return caught.value


def test_where_nothing_answers_the_reader_is_told_what_to_do():
    assert str(translation(exceptions.AMQPConnectionError())) == (
        "doing: no broker answers there; start it, or correct the url in the settings"
    )


@pytest.mark.parametrize("kind", OF_PIKA)
def test_every_exception_of_pika_becomes_one_of_ours(kind):
    error = kind(*_ARGUMENTS.get(kind, ("x",)))
    assert type(translation(error)) is EXPECTED.get(kind, BrokerUnavailableError)


@pytest.mark.parametrize(
    "error", [socket.gaierror("unknown"), ConnectionResetError(), ValueError("Timeout closed before call"), StopIteration()]
)
def test_what_pika_lets_through_from_below_means_that_the_connection_is_gone(error):
    assert type(translation(error)) is BrokerUnavailableError


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (403, "ACCESS_REFUSED - access to queue 'x' refused", TopologyError),
        (404, "NOT_FOUND - no queue 'x'", TopologyError),
        (404, "NOT_FOUND - queue 'x' in vhost 'fl' process is stopped by supervisor", BrokerUnavailableError),
        (406, "PRECONDITION_FAILED - inequivalent arg", TopologyError),
        (406, "PRECONDITION_FAILED - message size 16777217 is larger than configured max size 16777216", TopologyError),
        (406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out", BrokerUnavailableError),
        (406, "PRECONDITION_FAILED - queue 'x' does not have a replica on the local node", BrokerUnavailableError),
        (541, "INTERNAL_ERROR", BrokerUnavailableError),
    ],
)
def test_a_channel_closed_by_the_broker_says_who_must_act(code, text, expected):
    error = translation(exceptions.ChannelClosedByBroker(code, text))
    assert type(error) is expected
    assert text in str(error)


def test_a_login_at_its_connection_limit_is_worth_another_try():
    text = "(530) NOT_ALLOWED - access to vhost 'fl' refused for user 'a': user connection limit (8) is reached"
    assert type(translation(exceptions.ProbableAccessDeniedError(text))) is BrokerUnavailableError


def test_other_errors_pass_unchanged():
    with pytest.raises(KeyError), translated("doing"):
        raise KeyError("a mistake of ours")
