"""What the client worker needs to know before it starts."""

from pathlib import Path

from pydantic import Field

from broker_config.connection import ConnectionSettings
from client_worker.policy import Policy
from shared.settings import WorkerSettings


class ClientSettings(WorkerSettings):
    """One institution's settings. `num_examples` is a public figure that the operator and the others may know; it weighs
    this institution's updates. `at_least_seconds` stretches every local training, for demonstrations of slow institutions.
    """

    institution: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    incarnation: int = Field(ge=1)
    pseudonym: str = Field(pattern=r"^[0-9a-f]{16}$")
    run_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    task_file: Path
    training_file: Path
    validation_file: Path | None = None
    num_examples: int = Field(ge=1)
    state_folder: Path
    device: str = "auto"
    log_level: str = "info"
    at_least_seconds: float = Field(default=0.0, ge=0)
    leave_when_finished: bool = False
    broker: ConnectionSettings
    policy: Policy = Policy()

    @property
    def ledger_file(self) -> Path:
        """The privacy ledger and outbox."""
        return self.state_folder / "ledger.sqlite"
