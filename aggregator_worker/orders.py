"""The operator's orders as they arrive at the leader; each is settled by the next commit."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import structlog

from aggregator_worker import operations
from aggregator_worker.admission import Number, check_author
from aggregator_worker.dead_letters import put_aside, taken_back
from aggregator_worker.desk import Desk
from aggregator_worker.federation import Federation
from aggregator_worker.intake import Upload
from aggregator_worker.model_uploads import ModelUpload, ModelUploads
from aggregator_worker.operations import RefusedOperationError
from aggregator_worker.plan_change import KIND as CHANGE_PLAN
from aggregator_worker.plan_change import changed_plan
from aggregator_worker.refusals import say_refused
from aggregator_worker.roll_back import KIND as ROLL_BACK
from aggregator_worker.roll_back import checked_model
from broker_config.streams import records_of
from broker_config.topology import OPERATIONS
from shared import messages
from shared.broker import Delivery
from shared.errors import IncompatibleUpdateError, RejectedMessageError, SettingsError, UnknownInstitutionError
from shared.messages import Operation, OperationOutcome
from shared.parameters import Parameters

MAX_ORDER_BYTES = 16 * 2**20
"""An order may carry a chunk of a dead letter, or of a model."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class Orders:
    """Follows orders on behalf of a desk. `models` holds what has come of a roll-back's model; whoever gave it closes it.

    `commit` makes a manifest of all that is pending. `has_rows` says whether every version is measured on held-out rows.
    """

    desk: Desk
    models: ModelUploads
    commit: Callable[[], object]
    has_rows: bool = False

    def take(self, delivery: Delivery) -> Operation | None:
        """Follows an operator's order; returns it if it was applied just now."""
        federation = self.desk.federation
        try:
            operation = messages.decode(Operation, "operation", delivery.believed().body, max_bytes=MAX_ORDER_BYTES)
            if operation.run_id != federation.head.manifest.run_id:
                raise IncompatibleUpdateError("the order is for another run")
        except RejectedMessageError as error:
            put_aside(self.desk.broker, delivery, reason=str(error))
            self.desk.broker.ack(delivery)
            say_refused(OPERATIONS, error, delivery)
            return None
        outcome = self._settled(operation, delivery)
        if outcome is None:
            self.desk.broker.ack(delivery)
            return None
        self.desk.keep(delivery.receipt())
        about = str(operation.arguments.get("institution", ""))[:80]
        log.info("operation", kind=operation.kind, institution=about, applied=outcome.applied, reason=outcome.reason)
        return operation if outcome.applied else None

    def _settled(self, operation: Operation, delivery: Delivery) -> OperationOutcome | None:
        if operation.kind == "requeue":
            return operations.settled(self.desk.federation, operation, lambda: self._requeue(operation, delivery))
        if operation.kind == ROLL_BACK:
            return self._roll_back(operation)
        if operation.kind == CHANGE_PLAN:
            return self._change_plan(operation)
        return operations.apply(self.desk.federation, operation, self.desk.pseudonym_of)

    def _roll_back(self, operation: Operation) -> OperationOutcome | None:
        """Takes a chunk of the model; with the last one the order is settled. A successor does not know the chunks before it."""
        federation = self.desk.federation
        if operations.is_settled(federation, operation):
            return None
        shapes = federation.state.shapes
        try:
            upload = self.models.take(operation, max_bytes=encoded_bytes(federation))
            model = None if upload is None else checked_model(upload.content, shapes)
        except RejectedMessageError as error:
            return operations.settled(federation, operation, partial(_refuse, str(error)[:200]))
        if upload is None or model is None:
            return None
        return operations.settled(federation, operation, lambda: self._replace(upload, model))

    def _replace(self, upload: ModelUpload, model: Parameters) -> str:
        """Puts the model in the newest one's place; returns what the manifest tells of it. Raises RefusedOperationError."""
        federation, wanted = self.desk.federation, upload.wanted
        head, offender = federation.head.manifest, federation.table.get(wanted.without)
        if upload.replaces != head.model.hash or federation.makes_version:
            newest = head.version + federation.makes_version
            raise RefusedOperationError(f"version {newest} has been made since the operator looked; it would be lost")
        if wanted.to_version > head.version:
            raise RefusedOperationError(f"there is no version {wanted.to_version} yet, {head.version} is the newest")
        if offender is not None and not (offender.quarantined or offender.removed):
            raise RefusedOperationError(f"{wanted.without} is neither in quarantine nor removed: its next update would be folded")
        federation.replace_model(model)
        return wanted.told()

    def _change_plan(self, operation: Operation) -> OperationOutcome | None:
        """What was folded under the present plan gets a manifest of its own first: no manifest belongs to two plans."""
        federation = self.desk.federation
        if operations.is_settled(federation, operation):
            return None
        if not federation.empty:
            self.commit()
        return operations.settled(federation, operation, lambda: self._put_in_force(operation))

    def _put_in_force(self, operation: Operation) -> str:
        federation = self.desk.federation
        if federation.head.manifest.phase == "finished":
            raise RefusedOperationError("the run is finished")
        present = federation.plan.hash
        try:
            plan = changed_plan(operation.arguments, federation.plan, has_rows=self.has_rows)
        except SettingsError as error:
            raise RefusedOperationError(str(error)[:200]) from error
        federation.change_plan(plan)
        return f"plan {present[:12]} is followed by {plan.hash[:12]}"

    def _requeue(self, operation: Operation, delivery: Delivery) -> None:
        """Takes a dead letter back. Raises RefusedOperationError where its update must not or cannot be folded."""
        author, letter = taken_back(operation, delivery)
        try:
            upload = self.desk.intake.take(f"{author}, taken back", letter, now=self.desk.clock())
            if upload is not None:
                with closing(upload):
                    self._readmit(author, upload)
        except RejectedMessageError as error:
            raise RefusedOperationError(str(error)[:200]) from error

    def _readmit(self, author: str, upload: Upload) -> None:
        desk = self.desk
        desk.demand_harmless(upload)
        upload.deliveries.clear()  # they are settled with their orders
        entry = desk.member(author)
        update, delta = messages.decode_update(desk.intake.load(upload), max_bytes=upload.head.size)
        run_id = desk.federation.head.manifest.run_id
        check_author(update.run_id, update.institution, user_id=author, queue_owner=author, run_id=run_id)
        if update.incarnation != entry.incarnation:
            raise UnknownInstitutionError(f"incarnation {update.incarnation} is not {entry.incarnation}, the present one")
        if update.sequence > entry.watermark + 1:
            raise IncompatibleUpdateError(f"number {update.sequence} comes before its turn, {entry.watermark + 1} is next")
        if update.sequence <= entry.watermark:
            self._demand_not_aggregated(author, Number(update.incarnation, update.sequence))
        outcome = desk.settle(author, upload, update, delta)
        desk.settle_followers(author)
        if outcome.outcome != "aggregated":
            raise RefusedOperationError(f"it is settled as {outcome.outcome}: {outcome.reason}"[:200])

    def _demand_not_aggregated(self, author: str, number: Number) -> None:
        """An update that counts already must not count again, whatever letter there is of it."""
        pseudonym, pending = self.desk.pseudonym_of(author), self.desk.federation.pending.settled
        told = [each for record in records_of(self.desk.broker) for each in record.manifest.settled] + pending
        outcomes = [each.outcome for each in told if (each.institution, each.incarnation, each.sequence) == (pseudonym, *number)]
        if not outcomes:
            raise IncompatibleUpdateError(f"the lineage no longer tells what became of number {number.sequence}")
        if "aggregated" in outcomes:
            raise IncompatibleUpdateError(f"number {number.sequence} is aggregated already")


def encoded_bytes(federation: Federation) -> int:
    """What the present model takes in float32, and so every model that may take its place."""
    return messages.encode_model(federation.head.manifest.run_id, federation.state.model).size


def _refuse(reason: str) -> NoReturn:
    raise RefusedOperationError(reason)
