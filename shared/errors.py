"""Every error of fedqueue, named after what its reader must do.

FederationError
├── SettingsError                  correct a file or a variable, start again        exit 2
│   └── DataError                  correct the data file that the text names        exit 2
├── TopologyError                  a person must look: queue, right or password     exit 3
│   └── QueueGoneError             one subscribed queue was deleted; the connection and its other queues go on
├── CheckpointError                look at the state folder, nothing was settled    exit 4
├── StorageError                   make room or mend rights on the named folder; the worker retries by itself
├── BrokerUnavailableError         reconnect with backoff
│   └── PublishRefusedError        the broker has no room just now: publish the same again later
├── PrivacyBudgetExhaustedError    stop training, stay up, say so
└── RejectedMessageError           refuse the message, carry on
    ├── MalformedMessageError      the bytes are not ours, or are over a limit
    ├── UnsupportedSchemaError     written by another version of fedqueue
    ├── IncompatibleUpdateError    names, shapes or numbers that this model cannot take
    ├── UnknownInstitutionError    the author is not who the message says, or not a member
    ├── ForgedMessageError         not signed by its author for this place, or altered since
    ├── ReplayedMessageError       it was sent before, and is not to be taken twice
    └── SealedForOthersError       it cannot be read with these keys
"""


class FederationError(Exception):
    """Any failure that fedqueue foresees."""

    exit_code = 1


class SettingsError(FederationError):
    """A setting is missing or wrong; found before anything connects."""

    exit_code = 2


class DataError(SettingsError):
    """A data file cannot be used; the text names the file, the column and the remedy."""


class TopologyError(FederationError):
    """The broker answered that a queue, a right or a login is not as it must be."""

    exit_code = 3


class QueueGoneError(TopologyError):
    """A queue that was consumed, `queue`, does not exist any more; the broker object can be used on without it."""

    def __init__(self, queue: str, text: str) -> None:
        super().__init__(text)
        self.queue = queue


class CheckpointError(FederationError):
    """The aggregator's own state cannot be read or does not belong to this lineage."""

    exit_code = 4


class StorageError(FederationError):
    """A state folder cannot be written just now (disk full, rights); nothing was acknowledged."""


class BrokerUnavailableError(FederationError):
    """The connection is gone or was never there; every delivery of it is void."""


class PublishRefusedError(BrokerUnavailableError):
    """The broker did not take a message (full queue, leader election); nothing else is wrong."""


class PrivacyBudgetExhaustedError(FederationError):
    """One more local training would pass what is planned or allowed; `limit` names which."""

    def __init__(self, limit: str, reason: str) -> None:
        super().__init__(reason)
        self.limit = limit


class RejectedMessageError(FederationError):
    """A message that can never be used; its reason is for people and carries no data."""


class MalformedMessageError(RejectedMessageError):
    """The bytes are not a fedqueue message, or a declared size is over its limit."""


class UnsupportedSchemaError(RejectedMessageError):
    """The message was written under a schema version that this program does not know."""


class IncompatibleUpdateError(RejectedMessageError):
    """The update does not fit the model: names, shapes, finiteness or base."""


class UnknownInstitutionError(RejectedMessageError):
    """The broker-validated user is not the institution that the message names, or not a member."""


class ForgedMessageError(RejectedMessageError):
    """A message that its author did not sign for the place where it came, or that was altered since."""


class ReplayedMessageError(RejectedMessageError):
    """A message that its author did sign, and that comes again when something newer has taken its place."""


class SealedForOthersError(RejectedMessageError):
    """A sealed message whose key was not wrapped for the one who reads it."""
