"""Where a worker answers whoever watches it."""

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

from monitoring.vitals import STALLED_SECONDS

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:\s]+):(?P<port>[0-9]{1,5})")


class MonitoringSettings(BaseModel):
    """Health and figures for the machines around a worker. `[monitoring]` of both workers' settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    listen: str | None = None
    """Where `/metrics`, `/healthz` and `/readyz` are, as `127.0.0.1:9464` or `[::1]:9464`; without it no port is opened."""
    stalled_after_seconds: float = Field(default=STALLED_SECONDS, ge=1)
    """A loop that has not turned for so long is taken for dead; one evaluation of a model must be over sooner."""

    @field_validator("listen")
    @classmethod
    def _an_address_with_its_port(cls, listen: str | None) -> str | None:
        if listen is not None:
            split_address(listen)
        return listen


def split_address(listen: str) -> tuple[str, int]:
    """Host and port. Raises ValueError for what is no address with a port."""
    found = _ADDRESS.fullmatch(listen)
    if found is None or not 0 < int(found["port"]) < 2**16:
        raise ValueError(f"{listen!r} is no address with a port up to 65535, as 127.0.0.1:9464 is")
    return found["host"].strip("[]"), int(found["port"])
