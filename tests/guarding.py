"""Brokers whose messages are signed, and sealed where wanted: everybody's keys, and a server of guarded connections."""

from collections.abc import Sequence
from dataclasses import replace

from broker_config.guard import Guard
from broker_config.guarded import GuardedBroker
from shared.broker import Broker
from shared.keys import Identity, PublicKeys, Trust
from shared.messages import Entry
from tests.builders import NAMES, name_of
from tests.running import Server, members_table

PARTIES = ("operator", "aggregator", *NAMES)


class Keyring:
    """Everybody's keys, and what each party knows of the others'."""

    def __init__(self, *, sealed: bool = False) -> None:
        self.identities = {name: Identity.create() for name in PARTIES}
        self.trust = Trust(operator=self.public("operator"), aggregators={"aggregator": self.public("aggregator")}, sealed=sealed)

    def public(self, party: str) -> PublicKeys:
        return self.identities[party].public

    def guard(self, party: str, members: Sequence[str] = NAMES) -> Guard:
        """A new one; operator and aggregator know the members."""
        guard = Guard(self.identities[party], self.trust)
        if party in ("operator", "aggregator"):
            keys = {name: self.public(name) for name in members}
            guard.follow({name: each.signing for name, each in keys.items()}, [each.sealing for each in keys.values()])
        return guard

    def entry_keys(self, institution: str) -> dict[str, str]:
        """As an entry of the table has them, and an order to admit."""
        keys = self.public(institution)
        return {"signing_key": keys.signing, "sealing_key": keys.sealing}

    def table(self, members: Sequence[str] = NAMES) -> dict[str, Entry]:
        """The members of version 0, with their public keys."""
        plain = members_table(members)
        return {name_of(name): plain[name_of(name)].model_copy(update=self.entry_keys(name)) for name in members}


class GuardedServer:
    """Another server's connections, guarded; one party's can be exchanged, as an impostor's."""

    def __init__(self, inner: Server, keyring: Keyring, members: Sequence[str] = NAMES) -> None:
        self.inner = inner
        self.guards = {name: keyring.guard(name, members) for name in PARTIES}

    def connect(self, user: str) -> Broker:
        return GuardedBroker(self.inner.connect(user), self.guards[user])

    def impersonate(self, user: str, identity: Identity) -> Broker:
        """The login of one party with the keys of nobody."""
        return GuardedBroker(self.inner.connect(user), replace(self.guards[user], identity=identity))
