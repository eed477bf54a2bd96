"""The institution of the campaigns: what it adds is what it states, so that an honest campaign is not refused."""

import random

import numpy as np
import pytest

from aggregator_worker.statements import norm_fault, statement_fault
from campaigns.federation import TASK_HASH, drawn_plan, first_model
from campaigns.institution import NOISE_MULTIPLIER, local_data
from client_worker.course import Course
from client_worker.mechanism import local_training, statement_of
from shared.compact import l2_norm
from shared.messages import Entry
from shared.parameters import count
from tests.builders import an_update

PLAN = next(plan for plan in map(drawn_plan, map(random.Random, range(100))) if plan.privacy.mechanism == "dp-sgd")


@pytest.mark.parametrize("num_examples", [100, 400])
def test_an_honest_update_of_a_campaign_is_as_noisy_as_it_states(num_examples):
    # its target is the model, so that nothing but noise is in the delta
    data = local_data({"target": 0.0, "task_hash": TASK_HASH, "num_examples": num_examples})
    model = first_model()
    delta = data.train(model, local_training(PLAN, NOISE_MULTIPLIER, num_examples), Course())
    # sqrt(10 steps) x 1 / (sample rate 0.25 x examples)
    assert np.std(delta["weight"]) == pytest.approx(10**0.5 * 4 / num_examples, rel=0.05)
    stated = statement_of(PLAN, NOISE_MULTIPLIER, epsilon_spent=0.001, unit="record")
    update = an_update(num_examples=num_examples, privacy=stated)
    assert statement_fault(update, Entry(incarnation=1), PLAN) is None
    assert norm_fault(l2_norm(delta), update, PLAN, coordinates=count(model)) is None
