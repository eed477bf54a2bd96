import re

import pytest

from shared import errors
from shared.errors import (
    BrokerUnavailableError,
    CheckpointError,
    DataError,
    FederationError,
    MalformedMessageError,
    PublishRefusedError,
    RejectedMessageError,
    SettingsError,
    TopologyError,
)


def every_error() -> set[type[FederationError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, FederationError)]
    return set(found)


def test_the_tree_at_the_top_of_the_module_is_the_tree():
    drawn = re.findall(r"^([ │├└─]*)([A-Za-z]+Error)\b", errors.__doc__ or "", re.MULTILINE)
    path: list[str] = []
    for indent, name in drawn:
        del path[len(indent) // 4 :]
        parent = path[-1] if path else "Exception"
        assert getattr(errors, name).__bases__[0].__name__ == parent
        path.append(name)
    assert {name for _, name in drawn} == {error.__name__ for error in every_error()}


@pytest.mark.parametrize(
    ("error", "code"), [(SettingsError, 2), (DataError, 2), (TopologyError, 3), (CheckpointError, 4), (BrokerUnavailableError, 1)]
)
def test_a_process_ends_with_the_documented_code(error, code):
    assert error.exit_code == code


def test_a_refused_publish_is_retried_like_a_lost_broker_and_a_malformed_message_is_not():
    assert issubclass(PublishRefusedError, BrokerUnavailableError)
    assert issubclass(MalformedMessageError, RejectedMessageError)
    assert not issubclass(RejectedMessageError, BrokerUnavailableError)
