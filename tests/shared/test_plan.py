import pytest
from pydantic import ValidationError

from shared.codec import content_hash
from shared.plan import Plan
from tests.builders import a_plan


def test_two_plans_are_the_same_if_their_values_are():
    assert a_plan({"buffer_size": 3}).hash == a_plan({"buffer_size": 3}).hash
    assert a_plan({"buffer_size": 3}).hash != a_plan({"buffer_size": 4}).hash


def test_the_plans_hash_is_that_of_its_encoded_fields_in_their_documented_order():
    plan = Plan(task="t", task_hash="0" * 64)
    rest = ["aggregation", "defence", "local", "privacy", "ending", "limits", "broadcast", "update_encoding", "simulated"]
    assert list(plan.model_dump()) == ["task", "task_hash", *rest]
    assert len(plan.hash) == 64
    assert plan.hash != content_hash(b"")


@pytest.mark.parametrize(
    "values",
    [
        {"task_hash": "xyz"},
        {"colour": "red"},
        {"aggregation": {"buffer_size": 0}},
        {"aggregation": {"max_wait_seconds": float("inf")}},
        {"aggregation": {"staleness": {"function": "exponential"}}},
        {"local": {"sample_rate": 1.5}},
        {"local": {"learning_rate": float("nan")}},
        {"privacy": {"epsilon": 0.0}},
        {"privacy": {"target_delta": 1.0}},
        {"limits": {"chunk_bytes": 16 * 2**20}},
        {"limits": {"version_spacing_seconds": -1.0}},
        {"limits": {"version_spacing_seconds": float("inf")}},
        {"aggregation": {"server_momentum": 1.0}},
        {"aggregation": {"server_momentum": -0.1}},
        {"aggregation": {"server_momentum": 0.5, "server_adam": {}}},
        {"aggregation": {"rule": "fedavg"}},
        {"aggregation": {"largest_share": 1.5}},
        {"aggregation": {"server_adam": {"beta2": 1.0}}},
        {"defence": {"norm_cap": 1.0}},
        {"defence": {"strikes": 0}},
        {"broadcast": "float16"},
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_kept_is_refused(values):
    with pytest.raises(ValidationError):
        Plan.model_validate({"task": "t", "task_hash": "0" * 64, **values})


def test_a_plan_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        a_plan().task = "another"  # type: ignore[misc]
