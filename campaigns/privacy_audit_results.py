"""What an audit found at one epsilon, as a table and as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from campaigns.one_run_audit import (
    Bound,
    GaussianEstimate,
    Membership,
    bound,
    gaussian_estimate,
    membership,
    plan_guesses,
)
from campaigns.privacy_audit_data import Audited
from campaigns.privacy_audit_run import Run

NO_NOISE = "none"
ATTACK_WORKS_AUC = 0.99
ATTACK_WORKS_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Finding:
    """All runs at one epsilon together, and the bound of each alone. `accounted` is the ledgers' epsilon, None without noise."""

    plan_epsilon: float | None
    accounted: float | None
    noise_multiplier: float | None
    canaries: int
    bound: Bound
    membership: Membership
    estimate: GaussianEstimate
    alone: Mapping[int, float]

    @property
    def holds(self) -> bool:
        """Whether bound and estimate leave the accounted epsilon standing; without noise, whether the attack worked."""
        if self.accounted is None:
            return self.membership.auc > ATTACK_WORKS_AUC and self.bound.epsilon > ATTACK_WORKS_SHARE * self.bound.provable
        return max(self.bound.epsilon, self.estimate.at_least) <= self.accounted


def judged(runs: Sequence[Run], audited: Audited) -> Finding:
    """Runs at the same epsilon, whose canaries are taken as one large set. The largest epsilon of their ledgers counts."""
    scores, included = np.concatenate([run.scores for run in runs]), np.concatenate([run.included for run in runs])
    accounted = [run.ledger_epsilon for run in runs if run.ledger_epsilon is not None]
    return Finding(
        plan_epsilon=runs[0].plan_epsilon,
        accounted=max(accounted, default=None),
        noise_multiplier=runs[0].noise_multiplier,
        canaries=len(scores),
        bound=_bound_of(runs, audited),
        membership=membership(scores, included),
        estimate=gaussian_estimate(scores, included, target_delta=audited.target_delta),
        alone={run.seed: _bound_of([run], audited).epsilon for run in runs},
    )


def _bound_of(runs: Sequence[Run], audited: Audited) -> Bound:
    scores, included = np.concatenate([run.scores for run in runs]), np.concatenate([run.included for run in runs])
    separation = audited.separation(runs[0].noise_multiplier)
    plan = plan_guesses(len(scores), separation, target_delta=audited.target_delta)
    return bound(scores, included, plan, target_delta=audited.target_delta)


def line(run: Run, audited: Audited) -> str:
    """One run as it ends."""
    shown = _bound_of([run], audited)
    return (
        f"seed {run.seed}, epsilon {_number(run.ledger_epsilon, 3)}: at least {shown.epsilon:.2f}, "
        f"{shown.correct} of {shown.guesses.total} guesses correct, AUC {membership(run.scores, run.included).auc:.3f}"
    )


def table(findings: Sequence[Finding]) -> Table:
    """One row for each epsilon, in 80 columns."""
    titles = ("ledger", "shown", "at most", "estimate", "at least", "AUC", "TPR", "correct", "sigma")
    shown = Table(title="epsilon of what was published", padding=(0, 0), pad_edge=False)
    for title in titles:
        shown.add_column(title, no_wrap=True, justify="right")
    for each in findings:
        shown.add_row(
            _number(each.accounted, 3),
            f"{each.bound.epsilon:.2f}",
            f"{each.bound.provable:.2f}",
            f"{each.estimate.epsilon:.2f}",
            f"{each.estimate.at_least:.2f}",
            f"{each.membership.auc:.3f}",
            f"{each.membership.tpr_at_1_percent_fpr:.3f}",
            f"{each.bound.correct}/{each.bound.guesses.total}",
            _number(each.noise_multiplier, 3),
        )
    return shown


LEGEND = (
    "shown: bound of the one-run audit at 95 %, and at most what it could have shown; estimate, and at least (99.9 %): if noise "
    "is Gaussian; TPR: at 1 % false positives; correct: of the guesses behind the bound"
)


def verdict(findings: Sequence[Finding]) -> str:
    """The last line."""
    private = [each for each in findings if each.accounted is not None]
    bare = [each for each in findings if each.accounted is None]
    words = [f"{len(private)} accounted epsilons, {sum(not each.holds for each in private)} refuted"]
    if bare:
        words.append(
            f"without noise the attack {'works' if all(each.holds for each in bare) else 'FAILS, so this proves nothing'}"
        )
    return "privacy audit: " + "; ".join(words)


def as_json(findings: Sequence[Finding], audited: Audited) -> str:
    """Everything that was found; a number that is infinite is null."""
    plan = {
        name: getattr(audited, name) for name in ("updates", "steps", "sample_rate", "clipping_norm", "target_delta", "encoding")
    }
    document = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "canaries_in_a_run": audited.canaries,
        "ordinary_rows": audited.ordinary_rows,
        **plan,
        "findings": [_record(each) for each in findings],
    }
    return json.dumps(document, indent=1) + "\n"


def write(file: Path, findings: Sequence[Finding], audited: Audited) -> None:
    """`as_json` into a file."""
    file.write_text(as_json(findings, audited))


def _record(finding: Finding) -> dict[str, Any]:
    return {
        "plan_epsilon": finding.plan_epsilon,
        "accounted_epsilon": finding.accounted,
        "noise_multiplier": finding.noise_multiplier,
        "canaries": finding.canaries,
        "guesses": finding.bound.guesses.total,
        "correct": finding.bound.correct,
        "epsilon_at_least": finding.bound.epsilon,
        "epsilon_could_show": finding.bound.provable,
        "gaussian_estimate": _finite(finding.estimate.epsilon),
        "gaussian_estimate_at_least": _finite(finding.estimate.at_least),
        "auc": finding.membership.auc,
        "tpr_at_1_percent_fpr": finding.membership.tpr_at_1_percent_fpr,
        "epsilon_at_least_by_seed": {str(seed): epsilon for seed, epsilon in finding.alone.items()},
    }


def _number(value: float | None, digits: int) -> str:
    return NO_NOISE if value is None else f"{value:.{digits}f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
