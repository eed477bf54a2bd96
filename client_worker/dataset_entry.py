"""What the ledger keeps of the rows that are trained on, and the number of examples that it releases at most once."""

from dataclasses import replace
from functools import partial
from importlib import metadata

from client_worker.ledger import Ledger
from client_worker.local_work import LocalData
from client_worker.randomness import GENERATOR, SecureRandom
from client_worker.settings import ClientSettings
from shared.messages import Unit
from shared.tasks.spec import TaskSpec

ACCOUNTANT = f"dp-accounting {metadata.version('dp-accounting')} PLD"
NEIGHBOURING = "add-or-remove"


def unit_of(spec: TaskSpec) -> Unit:
    """What the task's sampling and clipping take as one."""
    return "person" if spec.person else "record"


def dataset_facts(settings: ClientSettings, *, fingerprint: str, unit: Unit) -> dict[str, str | int | None]:
    """The fields of a DATASET row; `num_examples` only where it is public."""
    return {
        "fingerprint": fingerprint,
        "unit": unit,
        "neighbouring": NEIGHBOURING,
        "num_examples": settings.num_examples,
        "accountant": ACCOUNTANT,
        "generator": GENERATOR,
    }


def with_count(settings: ClientSettings, data: LocalData, ledger: Ledger) -> LocalData:
    """The data under the number of examples that the ledger holds, drawn and charged now if this is the first time."""
    if settings.count_epsilon is None:
        return data
    return replace(data, num_examples=ledger.count_once(partial(noised_count, data.units), epsilon=settings.count_epsilon))


def noised_count(units: int, epsilon: float) -> int:
    """The number of units plus whole Laplace noise of scale 1 / epsilon, at least 1: one unit more or less moves it by one."""
    return max(1, units + int(SecureRandom().discrete_laplace(1.0 / epsilon, 1)[0]))
