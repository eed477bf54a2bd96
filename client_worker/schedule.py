"""The tables `[schedule]` and `[limits]` of client.toml: when to train, and how much of the machine and of the line to take."""

from typing import Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from client_worker.windows import Windows, parse_window

LEAST_BYTES_PER_SECOND = 32 * 1024
"""An aggregator gives an upload up after ten minutes without a chunk, and a chunk has up to 15 MiB."""


class Schedule(BaseModel):
    """When local training may begin. One that has begun is finished, and its update sent, also after a window has closed."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    windows: tuple[str, ...] = ()
    """Days and times, as in `["Mon-Fri 20:00-06:00", "Sat,Sun"]`; without any, training may begin at any time."""
    time_zone: str = ""
    """Whose clock the windows mean, as in `Europe/Vienna`; needed with windows."""

    @field_validator("windows")
    @classmethod
    def _in_form(cls, windows: tuple[str, ...]) -> tuple[str, ...]:
        for text in windows:
            parse_window(text)
        return windows

    @field_validator("time_zone")
    @classmethod
    def _known(cls, name: str) -> str:
        if name:
            _zone(name)
        return name

    @model_validator(mode="after")
    def _whose_clock(self) -> Self:
        if self.windows and not self.time_zone:
            raise ValueError('windows need the clock that they mean: add time_zone = "Europe/Vienna" or the like')
        return self

    def as_windows(self) -> Windows:
        """For the loop."""
        return Windows(tuple(map(parse_window, self.windows)), _zone(self.time_zone or "UTC"))


class Limits(BaseModel):
    """How much of the machine and of the line the worker may take."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    upload_bytes_per_second: int | None = Field(default=None, ge=LEAST_BYTES_PER_SECOND)
    """Updates leave no faster than this on average: after each chunk, of 4 MiB as a rule, there is a pause."""
    cpu_threads: int = Field(default=1, ge=1)
    """Threads that one training may use."""
    nice: int = Field(default=0, ge=0, le=19)
    """How far the training stands back behind other programs of the machine; 19 takes only what nobody else wants."""


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"no time zone {name!r} is known here; write it as in Europe/Vienna") from None
