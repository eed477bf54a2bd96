"""What the client worker needs to know before it starts."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from broker_config.connection import ConnectionSettings
from client_worker.policy import Policy
from shared.settings import WorkerSettings


class ClientSettings(WorkerSettings):
    """One institution's settings. `at_least_seconds` stretches every local training, for demonstrations of slow institutions.

    `num_examples`, of records, or of persons where the task names their column, weighs this institution's updates. It is a figure
    that is public anyway; or else the true number is released once with noise, at a cost of `count_epsilon`.
    """

    institution: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    incarnation: int = Field(ge=1)
    pseudonym: str = Field(pattern=r"^[0-9a-f]{16}$")
    run_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    task_file: Path
    training_file: Path
    validation_file: Path | None = None
    num_examples: int | None = Field(default=None, ge=1)
    count_epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    state_folder: Path
    device: str = "auto"
    log_level: str = "info"
    at_least_seconds: float = Field(default=0.0, ge=0)
    leave_when_finished: bool = False
    broker: ConnectionSettings
    policy: Policy = Policy()

    @model_validator(mode="after")
    def _one_source_of_the_number(self) -> Self:
        if (self.num_examples is None) == (self.count_epsilon is None):
            raise ValueError(
                "give either num_examples, a figure that is public, or count_epsilon, at which the true number is released once "
                "with noise; not both"
            )
        return self

    @property
    def ledger_file(self) -> Path:
        """The privacy ledger and outbox."""
        return self.state_folder / "ledger.sqlite"
