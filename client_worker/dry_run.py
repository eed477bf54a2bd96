"""`fedqueue-client --dry-run`: one local training as the worker would do it, and what of it would be sent, in words.

It reads plan and model with the worker's login, needs no right to write, and opens no ledger: nothing is sent, reserved or
charged. The noised update is made in memory and thrown away; as nobody ever sees it, its noise is spent for nothing and its
epsilon is not spent. What is told is for the terminal alone, as some of it is of before the noise.
"""

import math
import time
from dataclasses import dataclass, replace

from broker_config.streams import newest
from client_worker import outgoing
from client_worker.charging import affordable
from client_worker.course import Course, Norms
from client_worker.global_model import read_model, wanted_of
from client_worker.ledger_rows import Totals
from client_worker.local_work import LocalData, Member
from client_worker.mechanism import local_training
from client_worker.outgoing import Base, Terms
from client_worker.policy import require_task
from client_worker.standing import require_membership
from shared import parameters
from shared.broker import Broker
from shared.codec import Encoded
from shared.errors import TopologyError
from shared.messages import Update


@dataclass(frozen=True, slots=True, eq=False)
class Rehearsed:
    """What one training came to, and what would have left."""

    terms: Terms
    course: Course
    sequence: int
    content: Encoded
    shapes: parameters.Shapes
    spent_before: float

    @property
    def chunks(self) -> int:
        """Messages that the update would be sent in."""
        return max(1, math.ceil(self.content.size / self.terms.plan.limits.chunk_bytes))


def rehearse(broker: Broker, member: Member, data: LocalData, totals: Totals, course: Course) -> Rehearsed:
    """Trains once on the newest model. `totals` are those of the ledger as it lies on disk.

    Raises what a start would raise, and PlanRefusedError or PrivacyBudgetExhaustedError where the worker would not train.
    """
    head, lineage = newest(broker)
    require_membership(lineage, member)
    if lineage.plan is None:
        raise TopologyError("the lineage at the broker holds no plan; ask the operator to look at it with `fedqueue doctor`")
    plan = lineage.plan
    require_task(plan, task_hash=data.task_hash)
    data = replace(data, num_examples=data.num_examples or totals.counted or data.units)
    statement = affordable(plan, member.policy, data, totals)
    model = read_model(broker, wanted_of(head))
    settings = local_training(plan, statement.noise_multiplier, data.num_examples)
    course.steps, started = settings.steps, time.monotonic()
    delta = data.train(model, settings, course)
    course.seconds = time.monotonic() - started
    course.sent_norm = parameters.norm(delta)
    terms = Terms(Base(head.manifest.version, head.manifest.model, head.manifest.plan_hash), plan, statement, data.num_examples)
    sequence = totals.sealed[0] + 1
    before = max(totals.set_aside, totals.epsilon_spent.get(plan.privacy.target_delta, 0.0))
    return Rehearsed(terms, course, sequence, outgoing.update(member, terms, delta, sequence), parameters.shapes(delta), before)


def told(found: Rehearsed, member: Member, unit: str) -> list[tuple[str, str]]:
    """Lines of a heading and a sentence; the last but one are private."""
    return [
        ("trained", f"{found.course.steps} steps on version {found.terms.base.version}, in {found.course.seconds:.1f} s"),
        ("would leave", _size(found, member)),
        ("it would say", _said(found)),
        ("and hold", _numbers(found)),
        ("cost", _cost(found, member)),
        ("besides", _besides(member, found.terms.num_examples)),
        ("stays here", _private(found.course.norms, unit, found.terms.statement.clipping_norm)),
        ("now", "nothing was sent, nothing was charged, and what was made is gone; these lines are for this terminal alone"),
    ]


def _size(found: Rehearsed, member: Member) -> str:
    text = f"update {found.sequence}, {found.content.size:,} bytes in {found.chunks} message{'s' * (found.chunks > 1)}"
    limit = member.upload_bytes_per_second
    return text if limit is None else f"{text}, in {found.content.size / limit:,.0f} s at {limit:,} bytes a second"


def _said(found: Rehearsed) -> str:
    stated = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in found.terms.statement.model_dump().items()
        if value is not None
    ]
    fields = ", ".join(name for name in Update.model_fields if name not in ("privacy", "num_examples"))
    return f"{fields}; num_examples {found.terms.num_examples:,}; {', '.join(stated)}"


def _numbers(found: Rehearsed) -> str:
    each = ", ".join(f"{name} {'x'.join(map(str, shape)) or '1'}" for name, shape in sorted(found.shapes.items()))
    std, count = found.terms.noise_std, sum(math.prod(shape) for shape in found.shapes.values())
    noise = "there is NO NOISE in them" if std is None else f"the noise in them is about {std * math.sqrt(count):.3g} long"
    return f"{each} as {found.terms.plan.update_encoding}; together they are {found.course.sent_norm:.3g} long, {noise}"


def _cost(found: Rehearsed, member: Member) -> str:
    spent, allowed = found.terms.statement.epsilon_spent, found.terms.plan.privacy.epsilon
    if spent is None or allowed is None:
        return "no epsilon: the plan asks for no noise"
    return (
        f"epsilon {spent - found.spent_before:.3g}, which would make {spent:.3g} of the plan's {allowed:g}; "
        f"your policy allows {member.policy.max_epsilon:g}"
    )


def _besides(member: Member, num_examples: int) -> str:
    reports = member.policy.reports
    hello = f"a hello at each start: the id, the last update's number and hash, num_examples {num_examples:,}"
    figures = f"at most {reports.at_most} reports at epsilon {reports.epsilon_each:g} of validation rows"
    return f"{hello}; {figures}" if reports.allowed else hello


def _private(norms: Norms | None, unit: str, clipping_norm: float | None) -> str:
    if norms is None:
        return "everything else; no unit was drawn"
    if norms.of == "gradients" and clipping_norm is not None:
        share = 100 * norms.clipped / norms.count
        lengths = f"were {norms.before:.3g} long on average and {norms.largest:.3g} at most, {norms.after:.3g} after clipping"
        return f"the gradients of each {unit}: they {lengths} at {clipping_norm:g}, {share:.0f} % were cut"
    return f"the update before noise: it was {norms.before:.3g} long, {norms.after:.3g} after clipping"
