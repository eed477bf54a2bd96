"""From a task and a handful of choices to the plan that the federation agrees on."""

import math
from dataclasses import dataclass, replace
from itertools import count, takewhile
from typing import Any

from broker_config.room import needed_bytes
from broker_config.topology import MIB
from broker_config.topology import Limits as BrokerLimits
from client_worker.policy import Noised
from shared.codec import Dtype
from shared.did_you_mean import suggestion
from shared.errors import SettingsError
from shared.messages import SMALL_BYTES, encode_model
from shared.parameters import Parameters
from shared.plan import (
    AggregationPlan,
    Ending,
    Limits,
    LocalPlan,
    Plan,
    PrivacyPlan,
    RuleName,
    ServerAdam,
    SimulatedCost,
    StalenessRule,
    UpdateEncoding,
)
from shared.tasks.spec import METRICS, TaskSpec
from simulator.schedule import tenth, updates_in_all

TARGET_DELTA = 1e-5
MODELS_KEPT = 10
"""How many models the stream holds where there is room for them."""
MODELS_NEEDED = 4
"""The fewest: the newest, the one that a slow link is downloading, and one made before and after each."""
LEAST_MODEL_BYTES = 4096
"""What the stream takes for a model however small it is: a message has headers too."""
STATES_KEPT = 4
ROOM_TO_GROW = 2
"""How many times the institutions of the beginning there is room for in a state that has a row for each."""
TABLE_RULES: frozenset[RuleName] = frozenset({"latest-model", "latest-update"})
"""The rules that keep an array as large as the model of every institution."""
USABLE_SHARE = 0.8
"""Of the free disk: the rest is for the broker's own files, and for an institution that comes later."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What an operator may choose; None means what the task suggests. `epsilon` None means no noise at all."""

    epsilon: float | None = 3.0
    target_delta: float = TARGET_DELTA
    mechanism: Noised = "dp-sgd"
    updates: int | None = None
    horizon_seconds: float = 0.0
    updates_per_hour: int | None = None
    buffer_size: int | None = None
    server_learning_rate: float | None = None
    max_wait_seconds: float = 5.0
    ending: Ending | None = None
    rule: RuleName | None = None
    server_momentum: float = 0.0
    server_adam: bool = False
    broadcast: Dtype | None = None
    updates_as: UpdateEncoding | None = None
    simulated: SimulatedCost | None = None

    def broadcast_of(self, spec: TaskSpec) -> Dtype:
        """How models travel under a task."""
        return self.broadcast or spec.transport.models


@dataclass(frozen=True, slots=True)
class RoomOptions:
    """What an operator may choose of the broker's disk, in bytes; None means what the model needs, no journal, no slow link."""

    journal_bytes: int | None = None
    model_stream_bytes: int | None = None
    slowest_link_bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Sizes:
    """What one message of each kind takes, in bytes. `state` is 0 where a successor needs no more than the model."""

    update: int
    model: int
    state: int


def sizes_of(model: Parameters, broadcast: Dtype, aggregation: AggregationPlan, *, institutions: int) -> Sizes:
    """For a model and how it travels. An update has the model's tensors, in float32 at most, and fields of its own.

    Of the state, momentum takes a model, Adam two for its moments, and a table rule one for each institution, with
    `ROOM_TO_GROW`; under another broadcast than float32 the model itself is there too.
    """
    whole = encode_model("0" * 16, model).size
    sent = encode_model("0" * 16, model, broadcast).size
    moments = 2 if aggregation.server_adam else int(aggregation.server_momentum > 0)
    rows = ROOM_TO_GROW * institutions if aggregation.rule in TABLE_RULES else 0
    return Sizes(whole + SMALL_BYTES, sent, (moments + rows + int(broadcast != "float32")) * whole)


def broker_limits(sizes: Sizes, room: RoomOptions, *, institutions: int, free_bytes: int) -> BrokerLimits:
    """Room on the broker: a few updates for each institution, and ten models and one segment's worth at least, or what fits.

    Raises SettingsError where the wanted model stream holds too few models. What does not fit at all, `provision` refuses.
    """
    bare = BrokerLimits(
        update_bytes=sizes.update,
        model_stream_bytes=0,
        state_stream_bytes=max(64 * MIB, STATES_KEPT * sizes.state),
        dead_letter_bytes=max(256 * MIB, 2 * sizes.update),
        journal_stream_bytes=room.journal_bytes,
    )
    # retention drops whole segments, so that up to one less than the limit is sure to be there
    least = bare.segment_bytes + MODELS_NEEDED * sizes.model
    if room.model_stream_bytes is not None and room.model_stream_bytes < least:
        raise SettingsError(
            f"--model-stream must be at least {least} bytes: {MODELS_NEEDED} models of {sizes.model} bytes, and one segment"
        )
    usable = int(free_bytes * USABLE_SHARE) - needed_bytes(bare, institutions)
    ten = max(MODELS_KEPT * sizes.model, bare.segment_bytes)
    wanted = room.model_stream_bytes or min(bare.segment_bytes + ten, usable)
    return replace(bare, model_stream_bytes=max(least, wanted))


def models_held(sizes: Sizes, limits: BrokerLimits) -> int:
    """How many models the stream is sure to hold: retention drops whole segments."""
    return max(2, (limits.model_stream_bytes - limits.segment_bytes) // max(sizes.model, LEAST_MODEL_BYTES))


def version_spacing_seconds(sizes: Sizes, limits: BrokerLimits, room: RoomOptions) -> float:
    """How far apart versions must be, so that the slowest link finishes a download before the stream drops it.

    Of the models held, one is the download, one is not counted on, and the best comes again after every half of them.
    """
    if room.slowest_link_bytes_per_second is None:
        return 0.0
    held = models_held(sizes, limits)
    made = max(takewhile(lambda versions: 1 + versions + math.ceil(versions / (held // 2)) < held, count(1)), default=1)
    return sizes.model / room.slowest_link_bytes_per_second / made


def aggregation_for(spec: TaskSpec, options: PlanOptions) -> AggregationPlan:
    """How versions are made: what the operator chose, else what the task suggests, else what is usual for the rule."""
    suggested = spec.aggregation
    rule = options.rule or suggested.rule
    return AggregationPlan(
        rule=rule,
        staleness=StalenessRule(function=suggested.staleness_function, exponent=suggested.staleness_exponent),
        buffer_size=options.buffer_size or suggested.buffer_for(rule),
        max_wait_seconds=options.max_wait_seconds,
        server_learning_rate=options.server_learning_rate or suggested.rate_for(rule, adam=options.server_adam),
        server_momentum=options.server_momentum,
        server_adam=ServerAdam() if options.server_adam else None,
    )


def ending_for(spec: TaskSpec, **chosen: Any) -> Ending:
    """The end of a run from what was chosen of it, by the task's first figure unless another is named.

    Raises SettingsError for a figure that the task has not.
    """
    allowed, metric = METRICS[spec.kind], chosen.get("metric") or spec.first_metric
    if metric not in allowed:
        raise SettingsError(f"a {spec.kind} task has no figure {metric!r}: {suggestion(metric, allowed)}")
    return Ending(**{**chosen, "metric": metric})


def plan_for(
    spec: TaskSpec, options: PlanOptions, *, update_bytes: int, spacing_seconds: float = 0.0, held: int = MODELS_NEEDED
) -> Plan:
    """The plan for a task whose updates take so many bytes, and of whose models the stream is sure to hold `held`."""
    training = spec.training
    return Plan(
        task=spec.name,
        task_hash=spec.hash,
        aggregation=aggregation_for(spec, options),
        local=LocalPlan(
            steps=training.steps,
            sample_rate=training.sample_rate,
            learning_rate=training.learning_rate,
            updates=options.updates or training.updates,
            horizon_seconds=options.horizon_seconds,
        ),
        privacy=PrivacyPlan(
            mechanism="none" if options.epsilon is None else options.mechanism,
            epsilon=options.epsilon,
            target_delta=options.target_delta,
            clipping_norm=training.clipping_norm,
        ),
        ending=ending_for(spec, **(options.ending or Ending()).model_dump()),
        limits=Limits(
            update_bytes=update_bytes,
            version_spacing_seconds=spacing_seconds,
            models_held=held,
            updates_per_hour=options.updates_per_hour,
        ),
        broadcast=options.broadcast_of(spec),
        update_encoding=options.updates_as or spec.transport.updates,
        simulated=options.simulated,
    )


def demo_ending(institutions: int, updates: int) -> Ending:
    """The run ends with what the institutions do in the time an ordinary one needs for all its updates.

    All but one give theirs, and the one that is ten times slower a tenth of them; each gives at least that tenth. Where some of
    theirs are rejected, nobody waits for the slow one to make up the number.
    """
    ordinary = max(1, institutions - 1)
    return Ending(updates=updates_in_all(institutions, updates), institutions=ordinary, updates_each=tenth(updates))
