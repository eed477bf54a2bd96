"""What a real local training sends passes the aggregator's check of its norm, however it travels."""

import pytest

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
from tests.builders import a_plan, an_update
from tests.client_worker.trainings import KEY, rows, task, zeros

INPUTS, EXAMPLES = 2000, 40


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
