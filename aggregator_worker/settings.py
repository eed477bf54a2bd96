"""What the aggregator worker needs to know before it starts."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from broker_config.connection import ConnectionSettings
from broker_config.secret_files import demand_private
from monitoring.settings import MonitoringSettings
from shared.errors import SettingsError
from shared.settings import WorkerSettings


class Durability(BaseModel):
    """Times, in seconds. `consumer_timeout_seconds` is the broker's; a commit never keeps a delivery a quarter of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    consumer_timeout_seconds: float = Field(default=1800.0, gt=0)
    """The broker's own; a commit keeps no delivery for longer than a quarter of it."""
    orphan_seconds: float = Field(default=600.0, gt=0)
    """An upload of which no chunk came for so long is discarded; the institution sends it again."""


class AggregatorSettings(WorkerSettings):
    """`run_secret_file` holds the secret that pseudonyms are made with; `members_file` one institution id per line."""

    broker: ConnectionSettings
    """The login on the broker."""
    state_folder: Path
    """The checkpoint. Keep it on a disk that survives: it is the only copy that is fsynced."""
    run_secret_file: Path
    """What pseudonyms are made with; `fedqueue init` writes it, mode 600."""
    members_file: Path
    """One institution id per line: whose update queues may exist."""
    task_file: Path | None = None
    """How to read the held-out rows; not needed without them."""
    held_out_file: Path | None = None
    """Rows of your own, CSV or Parquet, on which every version is measured."""
    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`."""
    durability: Durability = Durability()
    """Times."""
    monitoring: MonitoringSettings = MonitoringSettings()
    """Health and figures, for the machine around it."""

    def run_secret(self) -> bytes:
        """The secret's bytes. Raises SettingsError when the file is missing or empty."""
        return read_secret(self.run_secret_file).get_secret_value().encode()

    def members(self) -> list[str]:
        """Ids of the institutions whose update queues may exist: those of the members file, and those admitted since."""
        try:
            named = self.members_file.read_text().split()
        except OSError as error:
            raise SettingsError(f"members_file {self.members_file}: {error.strerror}; `fedqueue init` writes it") from error
        since = self._admitted_file.read_text().split() if self._admitted_file.exists() else []
        return list(dict.fromkeys([*named, *since]))

    def remember(self, institution: str) -> None:
        """Keeps the name of an institution that was admitted: manifests hold pseudonyms only."""
        if institution not in self.members():
            with self._admitted_file.open("a") as file:
                file.write(f"{institution}\n")

    @property
    def _admitted_file(self) -> Path:
        return self.state_folder / "admitted.txt"


def read_secret(path: Path) -> SecretStr:
    """A secret from a file of its own. Raises SettingsError where it is missing, empty, or open to other users."""
    try:
        secret = path.read_text().strip()
        demand_private(path, "the run's secret")
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; `fedqueue init` writes it") from error
    if not secret:
        raise SettingsError(f"{path} is empty; it must hold the secret that `fedqueue init` wrote")
    return SecretStr(secret)
