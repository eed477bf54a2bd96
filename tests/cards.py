"""Model cards and files of made-up runs."""

from operator_console.model_card import LineageFacts, MemberFacts, ModelCard, PrivacyFacts
from shared.tasks.spec import parse_task

RIPENESS = """
name = "ripeness"
title = "Is it ripe?"
kind = "binary"
[label]
column = "ripe"
positive = ["yes"]
negative = ["no"]
[[numeric]]
columns = ["weight"]
minimum = 0
maximum = 10
missing_values = [-1]
[[numeric]]
columns = ["colour"]
minimum = 0
maximum = 100
log = true
missing = "indicator"
[[categorical]]
columns = ["orchard"]
categories = ["hill", "valley"]
[[categorical]]
columns = ["organic"]
categories = [1]
other = false
[model]
type = "logistic"
"""
FRUITS = RIPENESS.replace('kind = "binary"', 'kind = "multiclass"').replace(
    'positive = ["yes"]\nnegative = ["no"]', 'classes = ["apple", "pear", "plum"]'
)
PRICE = (
    RIPENESS.replace('kind = "binary"', 'kind = "regression"')
    .replace('positive = ["yes"]\nnegative = ["no"]', "minimum = 0\nmaximum = 500000")
    .replace('"logistic"', '"mlp"\nhidden = [4]')
)


def a_card(task=RIPENESS, **changes):
    """A card of version 7 of a run of two institutions."""
    members = (
        MemberFacts(institution="institution 1", updates=4, epsilon_spent=1.25, target_delta=1e-5),
        MemberFacts(institution="institution 2", updates=3, epsilon_spent=0.75, target_delta=1e-5),
    )
    facts = {
        "fedqueue": "0.1.0",
        "task": parse_task(task, source="the task"),
        "run_id": "ab" * 8,
        "version": 7,
        "newest_version": 9,
        "why": "it is the best by auc on held-out rows, 0.8",
        "first_at_ms": 1_700_000_000_000,
        "at_ms": 1_700_003_600_000,
        "institutions": members,
        "named": False,
        "examples": 500,
        "updates": {"aggregated": 7},
        "roll_backs": (),
        "metrics": {"auc": 0.8, "log_loss": 0.4, "threshold": 0.5},
        "measured_versions": 9,
        "decision": 0.5,
        "privacy": PrivacyFacts(mechanism="dp-sgd", unit="one row of an institution", epsilon_budget=3.0, target_delta=1e-5),
        "lineage": LineageFacts(first_manifest="1" * 64, manifest="2" * 64, model="3" * 64, task="4" * 64, plan="5" * 64),
    }
    return ModelCard(**{**facts, **changes})
