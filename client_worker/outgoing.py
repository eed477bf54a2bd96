"""Every message that leaves an institution, from values to values: what is not made here, is not sent."""

from dataclasses import dataclass
from typing import Protocol

from client_worker.compact import compacted
from shared import messages
from shared.codec import Encoded
from shared.messages import BlobName, Hello, Metrics, PrivacyStatement, Report, Standing, StandingState, Update
from shared.noise import noise_std
from shared.parameters import Parameters
from shared.plan import Plan


class Author(Protocol):
    """In whose name a message leaves."""

    @property
    def run_id(self) -> str: ...
    @property
    def institution(self) -> str: ...
    @property
    def incarnation(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Base:
    """What a training starts from: the model of a version, under the plan that is in force when it begins."""

    version: int
    model: BlobName
    plan_hash: str


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What a training's update will say beside its numbers. `num_examples` is the public figure."""

    base: Base
    plan: Plan
    statement: PrivacyStatement
    num_examples: int

    @property
    def noise_std(self) -> float | None:
        """The noise of one coordinate, were the loss flat; None without noise."""
        return noise_std(self.statement, self.plan, self.num_examples)


def hello(author: Author, head: tuple[int, str], *, nonce: str, num_examples: int) -> Hello:
    """`head` is the sequence and hash of the last sealed update."""
    return Hello(
        run_id=author.run_id,
        institution=author.institution,
        incarnation=author.incarnation,
        head_sequence=head[0],
        head_hash=head[1],
        nonce=nonce,
        num_examples=num_examples,
    )


def update(author: Author, terms: Terms, delta: Parameters, sequence: int) -> Encoded:
    """The bytes of an update: `delta` is noised already, and is rounded to what the plan's encoding holds."""
    said = Update(
        run_id=author.run_id,
        institution=author.institution,
        incarnation=author.incarnation,
        sequence=sequence,
        base_version=terms.base.version,
        base_hash=terms.base.model.hash,
        plan_hash=terms.base.plan_hash,
        num_examples=terms.num_examples,
        privacy=terms.statement,
    )
    return messages.encode_parts("update", said, compacted(delta, terms.plan.update_encoding, terms.noise_std))


def standing(author: Author, plan_hash: str, state: StandingState, *, limit: str, reason: str) -> Standing:
    """Why nothing more is trained under a plan."""
    return Standing(
        run_id=author.run_id,
        institution=author.institution,
        incarnation=author.incarnation,
        plan_hash=plan_hash,
        state=state,
        limit=limit,
        reason=reason[:200],
    )


def report(author: Author, version: int, model_hash: str, metrics: Metrics, epsilon: float) -> Report:
    """Noised figures of a version's model on validation rows."""
    return Report(
        run_id=author.run_id,
        institution=author.institution,
        incarnation=author.incarnation,
        version=version,
        model_hash=model_hash,
        metrics=metrics,
        epsilon=epsilon,
    )
