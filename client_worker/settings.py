"""What the client worker needs to know before it starts."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from broker_config.connection import ConnectionSettings
from client_worker.policy import Policy
from client_worker.schedule import Limits, Schedule
from monitoring.settings import MonitoringSettings
from shared.settings import WorkerSettings


class ClientSettings(WorkerSettings):
    """One institution's settings. `at_least_seconds` stretches every local training, for demonstrations of slow institutions.

    `num_examples`, of records, or of persons where the task names their column, weighs this institution's updates. It is a figure
    that is public anyway; or else the true number is released once with noise, at a cost of `count_epsilon`.
    """

    institution: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """The id that the operator gave; also the login's name."""
    incarnation: int = Field(ge=1)
    """Issued at onboarding; a higher one takes the place of a lost disk."""
    pseudonym: str = Field(pattern=r"^[0-9a-f]{16}$")
    """The name under which members see this institution."""
    run_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    """The federation run that this kit is for."""
    task_file: Path
    """Columns and model, the same file for everybody."""
    training_file: Path
    """The institution's rows, CSV or Parquet. They never leave this machine."""
    validation_file: Path | None = None
    """Rows for reports and for judging a personalised model; not trained on."""
    num_examples: int | None = Field(default=None, ge=1)
    """A public figure, about how many rows: it is sent with every update, and weighs it."""
    count_epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Instead: the true number is released once, with noise, at this cost."""
    state_folder: Path
    """Ledger and outbox. Never delete or restore it while the federation runs."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`."""
    at_least_seconds: float = Field(default=0.0, ge=0)
    """Every local training takes at least so long; for demonstrations."""
    leave_when_finished: bool = False
    """End with code 0 when the run is finished, instead of waiting for a roll-back or another order."""
    broker: ConnectionSettings
    """The login on the broker."""
    policy: Policy = Policy()
    """The most that this institution will ever allow; it wins over the plan."""
    schedule: Schedule = Schedule()
    """When local training may begin."""
    limits: Limits = Limits()
    """How much of the machine and of the line the worker may take."""
    monitoring: MonitoringSettings = MonitoringSettings()
    """Health and figures, for the machine around it."""

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
