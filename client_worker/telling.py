"""What the log says in words, beside the same figures as fields. Nothing from before the noise is among them."""

from datetime import datetime

from client_worker.outgoing import Terms
from client_worker.policy import Policy
from client_worker.sent import SentUpdate
from client_worker.windows import Windows
from shared.messages import Outcome, PrivacyStatement, Report, Standing
from shared.plan import Plan

OUTCOMES: dict[str, str] = {
    "aggregated": "it is part of version {version}",
    "stale": "it came too late and was not used; what it cost stays spent",
    "rejected": "the aggregator refused it; what it cost stays spent, and the operator's log says why",
    "over_budget": "the aggregator counts more than the plan allows and did not use it; what it cost stays spent",
    "lost": "the federation lost it on its way; what it cost stays spent",
}


def starts(policy: Policy, *, examples: int, unit: str) -> str:
    """Once for each start: what can leave at all."""
    reports = (
        f", at most {policy.reports.at_most} reports of noised figures at epsilon {policy.reports.epsilon_each:g} each"
        if policy.reports.allowed
        else ""
    )
    noise = "updates, with noise unless the plan asks for none" if policy.allow_no_privacy != "no" else "noised updates"
    return (
        "trains here, on rows that stay here; what can leave are hellos (our id, the last update's number and hash, and the "
        f"public number of {unit}s, {examples:,}), {noise}, a line that says why we train no more{reports}; nothing else leaves"
    )


def greets(sequence: int) -> str:
    """With the hello."""
    last = f"our last update is number {sequence}, with its hash" if sequence else "we have sent no update yet"
    return f"a hello has left: our id, that {last}, and the public number of examples; waiting for the aggregator's answer"


def is_welcome(to_send: int) -> str:
    """The aggregator has answered."""
    again = f"; {to_send} of our updates are not settled there, and are sent again as they are" if to_send else ""
    return f"the aggregator knows of us and agrees about our updates{again}"


def terms(plan: Plan, statement: PrivacyStatement) -> str:
    """Once for each plan."""
    if statement.noise_multiplier is None:
        return f"the plan asks for {plan.local.updates} updates without noise: no epsilon holds for these rows"
    return (
        f"the plan asks for {plan.local.updates} updates within epsilon {plan.privacy.epsilon:g} in all; "
        f"the next one brings what is spent to {statement.epsilon_spent:.3g}"
    )


def begins(terms: Terms, unit: str) -> str:
    """A training, charged already."""
    steps = f"on version {terms.base.version}: {terms.plan.local.steps} steps on our rows"
    rows = f"{terms.num_examples:,} {unit}s by the public number"
    spent = terms.statement.epsilon_spent
    cost = "without noise" if spent is None else f"charged already: epsilon {spent:.3g} in all is spent, whether or not it ends"
    return f"training {steps}, {rows}; {cost}"


def is_made(steps: int, seconds: float) -> str:
    """A training has ended and its update is on disk."""
    return f"{steps} steps took {seconds:.0f} s; the noised update is on disk and leaves next"


def has_left(update: SentUpdate) -> str:
    """An update, every byte confirmed by the broker."""
    charged = update.charged
    made = f"update {update.sequence} has left: {update.size or 0:,} bytes, made on version {charged.base_version}"
    if charged.noise_multiplier is None or charged.epsilon is None or charged.epsilon_in_all is None:
        return f"{made}, WITHOUT NOISE, as the policy allows; waiting until it is settled"
    whole = charged.mechanism == "update-gaussian"
    cut, how = ("the whole update", "once") if whole else ("each gradient", f"in each of {charged.steps} steps")
    spent, budget = charged.epsilon_in_all, charged.budget
    left = "" if budget is None else f", {max(0.0, budget - spent):.3g} of {budget:g} left"
    return (
        f"{made}; {cut} was cut at length {charged.clipping_norm:g}, and noise of {charged.noise_multiplier:.3g} times that "
        f"added {how}; it cost epsilon {charged.epsilon:.3g}, {spent:.3g} spent in all{left}; waiting until it is settled"
    )


def is_settled(sequence: int, outcome: Outcome | str, version: int) -> str:
    """By a manifest."""
    return f"update {sequence} is settled: {OUTCOMES.get(outcome, outcome).format(version=version)}"


def small_has_left(body: Report | Standing) -> str:
    """A report or a standing."""
    if isinstance(body, Report):
        figures = ", ".join(f"{name} {value:.3g}" for name, value in body.metrics.items() if value is not None)
        return (
            f"a report of version {body.version} has left: {figures}, with noise, at epsilon {body.epsilon:g} of validation rows"
        )
    return f"the aggregator has been told that we train no more under this plan: {body.reason}"


def is_closed(opening: datetime) -> str:
    """Outside of every training window."""
    return f"outside the training windows; training goes on from {opening:%a %Y-%m-%d %H:%M %Z}"


def hours(windows: Windows, now: datetime) -> str | None:
    """For a person who looks at the settings; None without windows."""
    opening, closing = windows.next_opening(now), windows.closes(now)
    if opening is not None:
        return f"training windows: closed now, the next opens on {opening:%a %Y-%m-%d %H:%M %Z}"
    return None if closing is None else f"training windows: open now, until {closing:%a %Y-%m-%d %H:%M %Z}"


def is_paced(until: datetime) -> str:
    """The plan's updates are spread over its horizon."""
    return f"the plan spreads its updates over time; the next training begins at {until:%a %Y-%m-%d %H:%M %Z}"


def is_same(version: int) -> str:
    """No newer model."""
    return f"version {version} is still the newest; training on it again at once would spend budget for little"
