"""What a federation has agreed to do: carried by manifests, named in every update by its hash."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.codec import Dtype, content_hash, encode

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Mechanism = Literal["dp-sgd", "update-gaussian", "none"]
UpdateEncoding = Literal["float32", "float16", "int8"]


class Frozen(BaseModel):
    """Strict: an unknown key or another type is an error, never a guess."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StalenessRule(Frozen):
    """How weight falls with staleness: constant, polynomial or hinge (FedAsync, Xie et al. 2019, section 5.2)."""

    function: Literal["constant", "polynomial", "hinge"] = "polynomial"
    exponent: NotNegative = 0.5
    hinge_slope: Positive = 10.0
    hinge_threshold: Annotated[int, Field(ge=0)] = 4
    max_staleness: Annotated[int, Field(ge=0)] = 1000


class AggregationPlan(Frozen):
    """When a version is made, and of what. `buffer_size` is K; it is capped so that nobody waits, unless `exact_buffer`.

    `server_momentum` is beta of FedAvgM (Hsu, Qi & Brown 2019, section 3.1); 0 is plain averaging.
    """

    rule: Literal["fedavg"] = "fedavg"
    staleness: StalenessRule = StalenessRule()
    buffer_size: Annotated[int, Field(ge=1)] = 1
    exact_buffer: bool = False
    max_wait_seconds: Positive = 5.0
    server_learning_rate: Positive = 1.0
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0


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
    """The run is finished once `updates` are aggregated in all and every active institution has given `updates_each`."""

    updates: Annotated[int, Field(ge=1)] | None = None
    updates_each: Annotated[int, Field(ge=0)] = 0


class Limits(Frozen):
    """Declared sizes, checked before memory is taken.

    Versions are at least `version_spacing_seconds` apart, so that a slow link can finish a download before the stream that
    holds the last models drops it.
    """

    institutions: Annotated[int, Field(ge=1)] = 200
    update_bytes: Annotated[int, Field(ge=1024)] = 64 * 2**20
    chunk_bytes: Annotated[int, Field(ge=1024, le=15 * 2**20)] = 4 * 2**20
    manifest_bytes: Annotated[int, Field(ge=1024)] = 8 * 2**20
    version_spacing_seconds: NotNegative = 0.0


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
