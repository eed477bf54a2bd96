"""The institution's own rows bound to what can be done with them: training, accounting, reports."""

import os
import sys
import threading
from collections.abc import Callable
from functools import partial

from client_worker.course import Course
from client_worker.data import load_dataset
from client_worker.dataset_entry import unit_of
from client_worker.files import fingerprint, read_task
from client_worker.local_work import LocalData
from client_worker.mechanism import LocalTraining
from client_worker.privacy import epsilon_after, planned_noise_multiplier
from client_worker.randomness import SecureRandom
from client_worker.reports import figures_of, release_report
from client_worker.settings import ClientSettings
from client_worker.training import LocalTrainer
from shared.messages import Metrics
from shared.parameters import Parameters
from shared.tasks.spec import TaskSpec

NOT_COUNTED = 0
"""The number of examples before the ledger has drawn it; no message takes it."""


def open_data(settings: ClientSettings) -> LocalData:
    """Reads and checks the task and the data files. Raises SettingsError or DataError with a sentence that says what to do."""
    spec = read_task(settings.task_file)
    dataset = load_dataset(spec, settings.training_file)
    private = settings.policy.allow_no_privacy == "no"
    trainer = LocalTrainer(spec, device=settings.device, private=private, threads=settings.limits.cpu_threads)

    def train(base: Parameters, local: LocalTraining, course: Course) -> Parameters:
        stand_back(settings.limits.nice)
        return trainer.local_update(base, dataset, local, course)

    return LocalData(
        task_hash=spec.hash,
        fingerprint=fingerprint(settings.training_file),
        num_examples=settings.num_examples or NOT_COUNTED,
        train=train,
        noise_multiplier=partial(planned_noise_multiplier, set_aside=settings.count_epsilon or 0.0),
        epsilon=epsilon_after,
        report=_report(settings, spec),
        warm_up=trainer.warm_up,
        unit=unit_of(spec),
        units=dataset.units,
    )


def stand_back(nice: int) -> None:
    """The calling thread, and those that it starts from now on, yield to other programs: on Linux each thread has its own."""
    if nice and sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def _report(settings: ClientSettings, spec: TaskSpec) -> Callable[[Parameters, float], Metrics] | None:
    wanted = figures_of(spec, settings.policy.reports.metrics)
    if settings.validation_file is None or not settings.policy.reports.allowed or not wanted:
        return None
    dataset = load_dataset(spec, settings.validation_file, for_training=False)
    random = SecureRandom()
    return lambda model, epsilon: release_report(spec, model, dataset, epsilon=epsilon, random=random, wanted=wanted)
