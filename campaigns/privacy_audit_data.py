"""What is audited: real rows, canaries among them by the flip of a coin, and how an attacker scores each from updates alone."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

import builtin_tasks
from campaigns.one_run_audit import Coins, Scores
from shared.parameters import Parameters
from shared.plan import UpdateEncoding

NUMERIC = ("LIMIT_BAL", "AGE", *(f"BILL_AMT{month}" for month in range(1, 7)), *(f"PAY_AMT{month}" for month in range(1, 7)))
LABEL = "default payment next month"
CANARY = "canary"
_TASK = """\
name = "privacy-audit"
title = "Credit cards, and canaries among them"
kind = "binary"

[label]
column = "{label}"
positive = [1]
negative = [0]
base_rate = 0.22

[[numeric]]
columns = "LIMIT_BAL"
minimum = 10000
maximum = 1000000
log = true

[[numeric]]
columns = "AGE"
minimum = 20
maximum = 70

[[numeric]]
columns = "BILL_AMT1..BILL_AMT6"
minimum = 0
maximum = 500000
log = true

[[numeric]]
columns = "PAY_AMT1..PAY_AMT6"
minimum = 0
maximum = 100000
log = true

[[categorical]]
columns = "{canary}"
categories = [{names}]
other = false

[model]
type = "campaigns.privacy_audit_model:build"

[training]
steps = {steps}
sample_rate = {sample_rate}
learning_rate = 1.0
clipping_norm = {clipping_norm}
updates = {updates}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """The institution's rows and how it trains, epsilon apart.

    With a sample rate of 1 the canaries' scores are as far apart as the accountant assumes, so that a bound can come near it. The
    gradient of a canary has a norm of 1/2 at first and hardly less later: all of it is clipped to `clipping_norm`. With few
    ordinary rows a canary's step is more than one on the int8 grid even without noise, where the largest number sets that grid.
    """

    canaries: int = 5_000
    ordinary_rows: int = 300
    steps: int = 2
    sample_rate: float = 1.0
    updates: int = 5
    clipping_norm: float = 0.1
    target_delta: float = 1e-5
    encoding: UpdateEncoding = "int8"

    @property
    def num_examples(self) -> int:
        """The public figure: it depends on no coin."""
        return self.ordinary_rows + self.canaries // 2

    def separation(self, noise_multiplier: float | None) -> float:
        """How far a canary moves its score, in standard deviations of the noise: q sqrt(T) / sigma after T steps."""
        if noise_multiplier is None:
            return math.inf
        return self.sample_rate * math.sqrt(self.steps * self.updates) / noise_multiplier

    def task_text(self) -> str:
        """The task as TOML."""
        names = ", ".join(f'"{_name(canary)}"' for canary in range(self.canaries))
        training = {"steps": self.steps, "sample_rate": self.sample_rate, "updates": self.updates}
        return _TASK.format(label=LABEL, canary=CANARY, names=names, clipping_norm=self.clipping_norm, **training)

    def scores(self, deltas: Iterable[Parameters]) -> Scores:
        """Each canary's score: what the updates add up to in its coordinate. All canaries have label 1, which pulls upwards."""
        total = np.zeros(self.canaries)
        for delta in deltas:
            total += np.asarray(delta["weight"], np.float64)[0, len(NUMERIC) :]
        return total


def flipped_coins(audited: Audited, seed: int) -> Coins:
    """Which canaries are in: the audit's own randomness, and no part of the mechanism's."""
    return np.random.default_rng([seed, audited.canaries]).random(audited.canaries) < 0.5


def training_csv(audited: Audited, included: Coins, seed: int) -> str:
    """Credit-card clients drawn by the seed, and the canaries that are in: a name, label 1 and no other cell filled."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*NUMERIC, CANARY, LABEL], restval="", extrasaction="ignore")
    writer.writeheader()
    clients = list(csv.DictReader(io.StringIO(builtin_tasks.rows("credit-default").decode(), newline="")))
    drawn = np.random.default_rng([seed, len(clients)]).permutation(len(clients))[: audited.ordinary_rows]
    writer.writerows(clients[at] for at in drawn)
    writer.writerows({CANARY: _name(int(canary)), LABEL: "1"} for canary in np.flatnonzero(included))
    return text.getvalue()


def _name(canary: int) -> str:
    return f"canary-{canary}"
