"""Who signs what stands in a queue, and who may read it: the rules by which messages are signed, sealed, checked and opened."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from broker_config.definitions import AGGREGATOR
from broker_config.keyring import load_identity, load_trust
from broker_config.topology import (
    DEAD_LETTERS,
    LEAD,
    LINEAGE,
    MODEL,
    OPERATIONS,
    control_institution,
    entrance,
    institution_of,
    journal_institution,
    update_queue,
)
from shared.broker import Delivery, Message
from shared.chunks import PLAIN
from shared.envelopes import ENVELOPE, HPKE, ContentKey, open_sealed, sealed_about
from shared.errors import ForgedMessageError, UnknownInstitutionError
from shared.keys import Identity, Trust
from shared.signatures import SIGNATURE, signature_of, verify


@dataclass(frozen=True, slots=True)
class Authorship:
    """Whose a message must be: in words, the exchange that it was written for, and the public keys of which one signed it."""

    author: str
    exchange: str
    keys: tuple[str, ...]


@dataclass(slots=True)
class Guard:
    """One party's keys, and what it knows of the others'.

    `signing` holds the institutions' public signing keys by name, `readers` the sealing keys of all who may read models;
    an aggregator keeps both in step with the table of the newest manifest.
    """

    identity: Identity
    trust: Trust
    signing: dict[str, str] = field(default_factory=dict)
    readers: tuple[str, ...] = ()
    _model_key: tuple[object, ContentKey] | None = None

    @classmethod
    def load(cls, folder: Path) -> "Guard":
        """From a folder of keys. Raises SettingsError."""
        trust = load_trust(folder)
        institutions = trust.institutions
        signing = {name: keys.signing for name, keys in institutions.items()}
        return cls(load_identity(folder), trust, signing, tuple(keys.sealing for keys in institutions.values()))

    def follow(self, signing: Mapping[str, str], readers: Iterable[str]) -> None:
        """From now on these institutions' keys, by name, and these readers' of models."""
        self.signing, self.readers = dict(signing), tuple(readers)

    def protected(self, queue: str, message: Message) -> Message:
        """The message as it is published to a queue: sealed where this federation seals there, and signed."""
        exchange = entrance(queue)
        if self.trust.sealed and _is_sealed(queue):
            key = self._content_key(queue, message)
            body = key.seal(message.body, sealed_about(exchange, message.kind, message.message_id))
            message = replace(message, body=body, headers={**message.headers, ENVELOPE: HPKE})
        signature = signature_of(exchange, message, self.identity.signing)
        return replace(message, headers={**message.headers, SIGNATURE: signature})

    def opened(self, delivery: Delivery) -> Message:
        """The message that a delivery brings, checked and open. Raises RejectedMessageError where it is not to be believed."""
        message, must_be = delivery.message, self._authorship(delivery)
        if must_be is None:
            return message
        verify(must_be.exchange, message, must_be.keys, author=must_be.author)
        if message.headers.get(ENVELOPE) != HPKE:
            if self.trust.sealed and _is_sealed(delivery.queue):
                raise ForgedMessageError(f"it is not sealed, and in this federation {must_be.author} seals it")
            return message
        about = sealed_about(must_be.exchange, message.kind, message.message_id)
        body = open_sealed(message.body, about, self.identity.sealing)
        return replace(message, body=body, headers={**message.headers, ENVELOPE: PLAIN})

    def _authorship(self, delivery: Delivery) -> Authorship | None:
        """Whose a delivery must be; None where nobody signs."""
        queue, trust = delivery.queue, self.trust
        aggregators = tuple(keys.signing for keys in trust.aggregators.values())
        if queue == LEAD:
            return None
        if queue == OPERATIONS:
            return Authorship("the operator", entrance(queue), (trust.operator.signing,))
        institution = journal_institution(queue)
        if queue == DEAD_LETTERS and delivery.user_id != AGGREGATOR:
            institution = delivery.user_id or ""  # the broker put it there, as it came from its author
        if institution is not None:
            return self._of_institution(institution, former=trust.former.get(institution, ()))
        institution = institution_of(queue)
        if institution is not None:
            return self._of_institution(institution)
        if queue == DEAD_LETTERS or control_institution(queue) is not None:
            return Authorship("an aggregator", entrance(queue), aggregators)
        return Authorship("an aggregator or the operator", entrance(queue), (*aggregators, trust.operator.signing))

    def _of_institution(self, institution: str, *, former: Iterable[str] = ()) -> Authorship:
        present = [self.signing[institution]] if institution in self.signing else []
        keys = (*present, *former)
        if not keys:
            raise UnknownInstitutionError(f"no key of {institution[:64]!r} is known: the operator admits it with its keys")
        return Authorship(institution, entrance(update_queue(institution)), keys)

    def _content_key(self, queue: str, message: Message) -> ContentKey:
        """A key for one message; all chunks of a model have the same."""
        readers = self._recipients(queue)
        if queue != MODEL:
            return ContentKey.fresh(readers)
        model = (message.headers.get("id"), readers)
        if self._model_key is None or self._model_key[0] != model:
            self._model_key = (model, ContentKey.fresh(readers))
        return self._model_key[1]

    def _recipients(self, queue: str) -> tuple[str, ...]:
        masters = [self.trust.operator.sealing, *(keys.sealing for keys in self.trust.aggregators.values())]
        return _each_once(masters if queue != MODEL else [*masters, *self.readers])


def _is_sealed(queue: str) -> bool:
    """Whether what stands there tells of anybody's data: all but the lineage, the token and the hints."""
    return queue not in (LEAD, LINEAGE) and control_institution(queue) is None


def _each_once(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(keys))
