"""The institution's own rows bound to what can be done with them: training, accounting, reports."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from client_worker.data import fingerprint, load_dataset
from client_worker.ledger import Ledger
from client_worker.local_work import LocalData
from client_worker.mechanism import LocalTraining
from client_worker.privacy import ACCOUNTANT, NEIGHBOURING, epsilon_after, planned_noise_multiplier
from client_worker.randomness import GENERATOR, SecureRandom
from client_worker.reports import figures_of, release_report
from client_worker.settings import ClientSettings
from client_worker.training import LocalTrainer
from shared.errors import SettingsError
from shared.messages import Metrics, Unit
from shared.parameters import Parameters
from shared.tasks.spec import TaskSpec, parse_task

NOT_COUNTED = 0
"""The number of examples before the ledger has drawn it; no message takes it."""


def read_task(settings: ClientSettings) -> TaskSpec:
    """The task file's content. Raises SettingsError."""
    try:
        return parse_task(settings.task_file.read_text(), source=str(settings.task_file))
    except OSError as error:
        raise SettingsError(f"task_file {settings.task_file}: {error.strerror}; the operator gives you this file") from error


def open_data(settings: ClientSettings) -> LocalData:
    """Reads and checks the task and the data files. Raises SettingsError or DataError with a sentence that says what to do."""
    spec = read_task(settings)
    dataset = load_dataset(spec, settings.training_file)
    private = settings.policy.allow_no_privacy == "no"
    trainer = LocalTrainer(spec, device=settings.device, private=private)

    def train(base: Parameters, local: LocalTraining, should_stop: Callable[[], bool]) -> Parameters:
        return trainer.local_update(base, dataset, local, should_stop=should_stop)

    return LocalData(
        task_hash=spec.hash,
        fingerprint=fingerprint(settings.training_file),
        num_examples=settings.num_examples or NOT_COUNTED,
        train=train,
        noise_multiplier=partial(planned_noise_multiplier, set_aside=settings.count_epsilon or 0.0),
        epsilon=epsilon_after,
        report=_report(settings, spec),
        unit=unit_of(spec),
        units=dataset.units,
    )


def unit_of(spec: TaskSpec) -> Unit:
    """What the task's sampling and clipping take as one."""
    return "person" if spec.person else "record"


def dataset_facts(settings: ClientSettings, *, fingerprint: str, unit: Unit) -> dict[str, str | int | None]:
    """What the ledger keeps of what is trained on and how; `num_examples` only where it is public."""
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


def _report(settings: ClientSettings, spec: TaskSpec) -> Callable[[Parameters, float], Metrics] | None:
    wanted = figures_of(spec, settings.policy.reports.metrics)
    if settings.validation_file is None or not settings.policy.reports.allowed or not wanted:
        return None
    dataset = load_dataset(spec, settings.validation_file, for_training=False)
    random = SecureRandom()
    return lambda model, epsilon: release_report(spec, model, dataset, epsilon=epsilon, random=random, wanted=wanted)
