"""What a federation has agreed to do: carried by manifests, named in every update by its hash."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.codec import Dtype, content_hash, encode

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Mechanism = Literal["dp-sgd", "update-gaussian", "none"]
UpdateEncoding = Literal["float32", "float16", "int8"]
RuleName = Literal["credit", "fedasync", "fedbuff", "latest-model", "latest-update"]


class Frozen(BaseModel):
    """Strict: an unknown key or another type is an error, never a guess."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StalenessRule(Frozen):
    """How weight falls with staleness: constant, polynomial or hinge (FedAsync, Xie et al. 2019, section 5.2)."""

    function: Literal["constant", "polynomial", "hinge"] = "polynomial"
    exponent: NotNegative = 0.5
    hinge_slope: Positive = 10.0
    hinge_threshold: Annotated[int, Field(ge=0)] = 4
    max_staleness: Annotated[int, Field(ge=0)] = 4000


class ServerAdam(Frozen):
    """Adam at the aggregator (FedAdam, Reddi et al. 2021, algorithm 2; FADAS, Wang et al. 2024, for asynchronous updates).

    `epsilon` is the least denominator, in the units of the parameters.
    """

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    epsilon: Positive = 1e-3


class AggregationPlan(Frozen):
    """When a version is made, and of what. `buffer_size` is K; it is capped so that nobody waits, unless `exact_buffer`.

    `server_momentum` is beta of FedAvgM (Hsu, Qi & Brown 2019, section 3.1); 0 is plain averaging. At most one of it and
    `server_adam`. The rest bounds what one institution among three or more can do: `largest_share` of the data, and under
    `credit` `largest_weight` of one update (larger steps can make the model jump: docs/aggregation.md). A cycle is as many
    arrivals as there are institutions; one that is silent for more than `silent_cycles`, and three times as long as is usual for
    it, no longer counts until its next message.
    """

    rule: RuleName = "credit"
    staleness: StalenessRule = StalenessRule()
    buffer_size: Annotated[int, Field(ge=1)] = 1
    exact_buffer: bool = False
    max_wait_seconds: Positive = 5.0
    server_learning_rate: Positive = 1.0
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    server_adam: ServerAdam | None = None
    largest_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    largest_weight: Positive = 0.5
    silent_cycles: Positive = 6.0

    @model_validator(mode="after")
    def _one_optimizer(self) -> Self:
        if self.server_momentum and self.server_adam is not None:
            raise ValueError("server_momentum and server_adam exclude each other; Adam has a momentum of its own, beta1")
        return self


class Defence(Frozen):
    """What an update must pass beyond being well formed (docs/aggregation.md); None switches a part off.

    An update longer than `norm_cap` times what is usual, as it is and in the length that noise has on so many examples, is scaled
    down to it. Where the aggregator has held-out rows, one that would raise their log loss by more than `gate_tolerance` is
    rejected. After `strikes` rejections, each taken back by two accepted updates, an institution is in quarantine; a rejection
    that missed the tolerance narrowly counts half.
    """

    norm_cap: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = 3.0
    gate_tolerance: Positive | None = 0.01
    strikes: Annotated[int, Field(ge=1)] | None = 3


class PrivacyPlan(Frozen):
    """What the federation asks each institution to spend at most; the noise multiplier follows from it and the local plan.

    `dp-sgd` protects a record (or a person, where the task names a column), `update-gaussian` the institution as a whole.
    """

    mechanism: Mechanism = "dp-sgd"
    epsilon: Positive | None = 3.0
    target_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    clipping_norm: Positive = 1.0


class LocalPlan(Frozen):
    """One local training: `steps` of SGD on Poisson samples of `sample_rate`.

    An institution spreads its `updates` over `horizon_seconds`, so that a fast one does not spend its budget on early models; 0
    is as fast as it can.
    """

    steps: Annotated[int, Field(ge=1)] = 10
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.25
    learning_rate: Positive = 1.0
    updates: Annotated[int, Field(ge=1)] = 20
    horizon_seconds: NotNegative = 0.0


class Ending(Frozen):
    """When the run is finished: whichever of these is reached first. None is never; with none of them, only an order ends it.

    `updates` are aggregated in all, or so many `institutions` have given all they planned to, can afford no more or are in
    quarantine; and every active one has given `updates_each`. Or `versions` are made. Or an aggregator has led for `seconds`,
    pauses not counted. Or, by the figure `metric` on the operator's held-out rows, `target` was reached by so many versions
    `in_a_row`; or none of the last `patience` versions was better than the best before them.
    `metric` alone names the figure by which the best version is kept; without it there is none.
    """

    updates: Annotated[int, Field(ge=1)] | None = None
    institutions: Annotated[int, Field(ge=1)] | None = None
    updates_each: Annotated[int, Field(ge=0)] = 0
    versions: Annotated[int, Field(ge=1)] | None = None
    seconds: Positive | None = None
    metric: Annotated[str, Field(max_length=40)] = ""
    target: Annotated[float, Field(allow_inf_nan=False)] | None = None
    in_a_row: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        if self.needs_figures and not self.metric:
            raise ValueError("target and patience go by a held-out figure; name it in metric")
        return self

    @property
    def needs_figures(self) -> bool:
        """Whether it is judged on held-out rows, so that an aggregator without any could never end the run by it."""
        return self.target is not None or self.patience is not None

    @property
    def is_open(self) -> bool:
        """Whether nothing but an order ends the run."""
        conditions = (self.updates, self.institutions, self.versions, self.seconds)
        return not self.needs_figures and all(each is None for each in conditions)


class Limits(Frozen):
    """Declared sizes, checked before memory is taken.

    Versions are at least `version_spacing_seconds` apart, so that a slow link can finish a download before the stream that
    holds the last models drops it. That stream is sure to hold `models_held`; for half as long the best one may stay where it is.

    An institution that sends more than `updates_per_hour`, or more than `useless_per_minute` that settle no update, waits in its
    queue for a while. Of what is refused of it, `letters_per_day` become dead letters, the rest is counted. None: no limit.
    """

    institutions: Annotated[int, Field(ge=1)] = 200
    update_bytes: Annotated[int, Field(ge=1024)] = 64 * 2**20
    chunk_bytes: Annotated[int, Field(ge=1024, le=15 * 2**20)] = 4 * 2**20
    manifest_bytes: Annotated[int, Field(ge=1024)] = 8 * 2**20
    version_spacing_seconds: NotNegative = 0.0
    models_held: Annotated[int, Field(ge=2)] = 4
    updates_per_hour: Annotated[int, Field(ge=1)] | None = None
    useless_per_minute: Annotated[int, Field(ge=1)] | None = 1000
    letters_per_day: Annotated[int, Field(ge=1)] | None = 100


class SimulatedCost(Frozen):
    """What the operator's simulation found that noise costs: a metric on held-out rows without noise, and under this plan."""

    metric: Annotated[str, Field(max_length=40)]
    without_noise: Annotated[float, Field(allow_inf_nan=False)]
    with_noise: Annotated[float, Field(allow_inf_nan=False)]


class Plan(Frozen):
    """The whole agreement. Two plans are the same if their hashes are.

    `broadcast` is the type of the numbers in model blobs, `update_encoding` how institutions send the noised values.
    """

    task: str
    task_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    aggregation: AggregationPlan = AggregationPlan()
    defence: Defence = Defence()
    local: LocalPlan = LocalPlan()
    privacy: PrivacyPlan = PrivacyPlan()
    ending: Ending = Ending()
    limits: Limits = Limits()
    broadcast: Dtype = "float32"
    update_encoding: UpdateEncoding = "float32"
    simulated: SimulatedCost | None = None

    @property
    def hash(self) -> str:
        """SHA-256 over the encoded plan, in hexadecimal."""
        return content_hash(encode("plan", self.model_dump()))
