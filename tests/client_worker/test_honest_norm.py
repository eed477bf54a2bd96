"""What a real local training sends passes the aggregator's check of its norm, however it travels."""

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregator_worker.admission import admit
from aggregator_worker.statements import norm_fault, statement_fault
from client_worker.compact import compacted
from client_worker.mechanism import local_training, statement_of
from client_worker.randomness import SecureRandom
from client_worker.training import LocalTrainer
from shared.compact import l2_norm
from shared.messages import Entry
from shared.noise import noise_std
from shared.parameters import count
from shared.plan import LocalPlan, Mechanism, PrivacyPlan, UpdateEncoding
from tests.builders import a_federation, a_plan, an_update, name_of
from tests.client_worker.trainings import KEY, rows, task, zeros

INPUTS, EXAMPLES = 2000, 40


class Noiseless(SecureRandom):
    """Samples as ever, and noise of 0: a generator that is broken, or an institution that saves itself the noise."""

    def gaussian(self, count: int) -> NDArray[np.float64]:
        return np.zeros(count)


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
@pytest.mark.parametrize("mechanism", ["dp-sgd", "update-gaussian"])
def test_a_real_update_is_as_long_as_its_noise_and_one_that_states_six_times_as_much_is_not(
    mechanism: Mechanism, encoding: UpdateEncoding
) -> None:
    plan = a_plan(
        privacy=PrivacyPlan(mechanism=mechanism, clipping_norm=0.7),
        local=LocalPlan(steps=4, sample_rate=0.5, learning_rate=0.3),
        update_encoding=encoding,
    )
    trainer = LocalTrainer(task(INPUTS), device="cpu", random=SecureRandom(KEY), private=mechanism == "dp-sgd")
    delta = trainer.local_update(zeros(task(INPUTS)), rows(EXAMPLES, INPUTS), local_training(plan, 1.5, EXAMPLES))
    honest = statement_of(plan, 1.5, epsilon_spent=1.0, unit="record")
    sent = compacted(delta, encoding, noise_std(honest, plan, EXAMPLES))
    for noise_multiplier, passes in ((1.5, True), (9.0, False)):
        stated = honest.model_copy(update={"noise_multiplier": noise_multiplier})
        update = an_update(num_examples=EXAMPLES, privacy=stated)
        assert statement_fault(update, Entry(incarnation=1), plan) is None
        assert (norm_fault(l2_norm(sent), update, plan, coordinates=count(delta)) is None) == passes


@pytest.mark.parametrize("mechanism", ["dp-sgd", "update-gaussian"])
def test_the_same_training_without_its_noise_is_rejected_at_once_and_leads_to_quarantine(mechanism: Mechanism) -> None:
    plan = a_plan(
        privacy=PrivacyPlan(mechanism=mechanism, clipping_norm=0.7),
        local=LocalPlan(steps=4, sample_rate=0.5, learning_rate=0.3),
    )
    statement = statement_of(plan, 1.5, epsilon_spent=1.0, unit="record")
    outcomes = []
    for random in (SecureRandom(KEY), Noiseless(KEY)):
        trainer = LocalTrainer(task(INPUTS), device="cpu", random=random, private=mechanism == "dp-sgd")
        base = zeros(task(INPUTS))
        delta = trainer.local_update(base, rows(EXAMPLES, INPUTS), local_training(plan, 1.5, EXAMPLES))
        federation = a_federation(base, plan, {"bank-a": Entry(incarnation=1, num_examples=EXAMPLES)})
        for sequence in (1, 2, 3):
            update = an_update(sequence=sequence, base=federation.head, num_examples=EXAMPLES, privacy=statement)
            entry, shapes = federation.table[name_of("bank-a")], federation.state.shapes
            admission = admit(update, delta, entry=entry, lineage=federation.lineage, shapes=shapes)
            federation.settle(name_of("bank-a"), update, "", admission=admission, delta=delta)
            outcomes.append((admission.outcome, "the noise is missing" in admission.reason))
        outcomes.append(federation.table[name_of("bank-a")].quarantined)
    assert outcomes == [("aggregated", False)] * 3 + [False] + [("rejected", True)] * 3 + [True]
