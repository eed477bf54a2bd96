"""A federation that runs while a browser looks at it: a real broker, a leader and three banks at work, one bank by hand."""

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aggregator_worker import worker as aggregator
from aggregator_worker.cli import term_settings
from aggregator_worker.dead_letters import put_aside
from aggregator_worker.settings import AggregatorSettings
from broker_config.connection import connect, guard_of
from broker_config.logins import Logins, load, save
from broker_config.node import PrivateNode
from broker_config.provision import administration
from broker_config.service import read_settings
from broker_config.topology import update_queue
from client_worker import worker as client
from client_worker.cli import member
from client_worker.ledger import Ledger
from client_worker.local_work import LocalData, LocalWork
from client_worker.settings import ClientSettings
from operator_console.federation_folder import FederationFolder
from operator_console.history import History, follow
from operator_console.init_command import init
from operator_console.web.accounts import AccountBook
from shared.broker import Delivery, Message
from shared.messages import Metrics
from shared.parameters import Parameters
from shared.tasks.spec import parse_task
from tests.builders import a_statement, an_update, as_messages
from tests.conftest import INSTITUTIONS
from tests.running import Watch

BANKS = ("alder-bank", "birch-bank", "cedar-bank")
BY_HAND = "dogwood-bank"
ALONE = "elm-bank"
"""The only one of a second federation: logins belong to the broker, so no two have the same name."""
EXAMPLES = {"alder-bank": 400, "birch-bank": 300, "cedar-bank": 300, BY_HAND: 500, ALONE: 400}
SECONDS = {"alder-bank": 0.3, "birch-bank": 0.5, "cedar-bank": 0.9, ALONE: 0.3}
PULL = {"alder-bank": 0.4, "birch-bank": 0.6, "cedar-bank": 0.9, ALONE: 0.5}
EPSILON_EACH = 0.02
PASSWORDS = {"olga": "olga's long sentence", "victor": "victor's long sentence", "gast": "a guest's long sentence"}
ROLES = {"olga": "operator", "victor": "viewer", "gast": "viewer"}


def held_out(model: Parameters) -> Metrics:
    """Grows as the model learns."""
    learned = float(np.mean([np.abs(array).mean() for array in model.values()]))
    return {"auc": 0.5 + 0.4 * float(np.tanh(learned)), "log_loss": 0.7 - 0.3 * float(np.tanh(learned))}


@dataclass(frozen=True)
class Federation:
    """A founded federation on a virtual host of its own."""

    folder: Path

    def connect(self, user: str) -> AbstractContextManager:
        """A connection, closed at the end of the block."""
        settings = load(self.folder).settings(user)
        keys = self.folder / "institutions" / user / "keys"
        return closing(connect(settings.model_copy(update={"keys_folder": keys if keys.exists() else None}), name=f"test/{user}"))

    def lines(self) -> list[dict[str, Any]]:
        """The lineage as it stands, a line for each version."""
        history = History(FederationFolder(self.folder).names())
        with self.connect("operator") as broker:
            follow(broker, history)
        return list(history.lines())

    @property
    def pseudonyms(self) -> dict[str, str]:
        """By institution."""
        return {name: alias for alias, name in FederationFolder(self.folder).names().items()}

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """An eye on the lineage."""
        with self.connect("operator") as broker:
            yield Watch(broker)

    def bury(self, *messages: Message, author: str, refused: str) -> None:
        """As the aggregator does, and with its keys, with what it cannot use."""
        settings = read_settings(AggregatorSettings, self.folder / "aggregator.toml").broker
        with closing(connect(settings, name="test/aggregator", guard=guard_of(settings))) as broker:
            for message in messages:
                put_aside(broker, Delivery(update_queue(author), 0, message, user_id=author), reason=refused)

    def update_by_hand(self, number: int) -> list[Message]:
        """An update of the bank that nobody runs, trained on the newest version."""
        with self.watch() as watch:
            run_id = watch.head.manifest.run_id
            facts = {"run_id": run_id, "num_examples": EXAMPLES[BY_HAND]}
            update = an_update(BY_HAND, number, base=watch.head, privacy=a_statement(watch.reader.lineage.plan), **facts)
            return as_messages(update, {name: np.full_like(array, 0.01) for name, array in watch.model().items()})


@contextmanager
def founded(node: PrivateNode, logins: Logins, folder: Path, banks: tuple[str, ...] = (*BANKS, BY_HAND)) -> Iterator[Federation]:
    """A federation at version 0, and three people who may sign in."""
    vhost = f"console-{secrets.token_hex(4)}"
    users = {name: word for name, word in logins.users.items() if name not in INSTITUTIONS}
    own = logins.model_copy(update={"vhost": vhost, "amqp": node.amqp_url(vhost), "users": users})
    save(own, folder)
    init(task="heart-disease", institution=list(banks), folder=folder, epsilon="20", updates=5000, buffer_size=1)
    accounts = AccountBook(folder / "console" / "users.json")
    for name, word in PASSWORDS.items():
        accounts.add(name, ROLES[name], word)
    yield Federation(folder)
    with administration(own) as management:
        management.delete_vhost()
        for institution in banks:
            management.delete_user(institution)


@contextmanager
def at_work(federation: Federation, banks: tuple[str, ...] = BANKS) -> Iterator[None]:
    """While inside, an aggregator leads and the banks train; none may fail."""
    stopping, failures = threading.Event(), []

    def told(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told to the test, whatever it is
            failures.append(error)

    works = [lambda: _lead(federation.folder, stopping), *(_bank(federation.folder, name, stopping) for name in banks)]
    threads = [threading.Thread(target=told, args=(work,)) for work in works]
    with ExitStack() as stack:
        stack.callback(lambda: [thread.join(30) for thread in threads])
        stack.callback(stopping.set)
        for thread in threads:
            thread.start()
        yield
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)


def _lead(folder: Path, stopping: threading.Event) -> None:
    settings = read_settings(AggregatorSettings, folder / "aggregator.toml")
    term = replace(term_settings(settings, stopping), evaluate=held_out)
    aggregator.run(lambda: connect(settings.broker, name="test/aggregator", guard=term.guard), term, stopping)


def _bank(folder: Path, name: str, stopping: threading.Event) -> Callable[[], None]:
    """A worker with its kit's settings and keys, whose training is always the same step, as long as its noise demands."""

    def train(model: Parameters, _settings: object, _course: object) -> Parameters:
        stopping.wait(SECONDS[name])
        return {tensor: np.full_like(array, 0.02 * PULL[name]) for tensor, array in model.items()}

    def take_part() -> None:
        settings = settings_of(folder, name)
        task = parse_task((folder / "task.toml").read_text(), source="task.toml")
        data = LocalData(
            task_hash=task.hash,
            fingerprint=f"rows of {name}",
            num_examples=EXAMPLES[name],
            train=train,
            noise_multiplier=lambda plan: 1.0,
            epsilon=lambda charges, target_delta: EPSILON_EACH * len(charges),
        )
        ledger = Ledger(settings.ledger_file, run_id=settings.run_id, institution=name, incarnation=settings.incarnation)
        work = LocalWork(member(settings), data, ledger, stopping)
        client.run(lambda: connect(settings.broker, name=f"test/{name}"), work, stopping)

    return take_part


def settings_of(folder: Path, name: str) -> ClientSettings:
    """What the institution's kit holds, once it has named its number of rows."""
    file = folder / "institutions" / name / "client.toml"
    file.write_text(file.read_text().replace("# num_examples =", f"num_examples = {EXAMPLES[name]} #", 1))
    return read_settings(ClientSettings, file)
