"""Logs: one canonical line per event, coloured on a terminal, JSON elsewhere. `says` is the line in words."""

import logging
import sys
from typing import TextIO

import structlog

from shared.printable import MARK


def configure(*, level: str = "info", stream: TextIO | None = None) -> None:
    """Sets structlog up once per process. Lines go to standard error unless a stream is given."""
    out = stream or sys.stderr
    interactive = out.isatty()
    shared_processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderers: list[structlog.typing.Processor] = (
        [_for_a_terminal, structlog.dev.ConsoleRenderer()]
        if interactive
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared_processors, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    logging.getLogger("pika").setLevel(logging.CRITICAL)


def _for_a_terminal(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The sentence first. What strangers wrote must not move the cursor: JSON escapes control characters, terminals obey them."""
    if "says" in event:
        event["event"] = f"{event['event']}: {event.pop('says')}"
    return {name: _shown(value) if isinstance(value, str) else value for name, value in event.items()}


def _shown(text: str) -> str:
    return "".join(each if each.isprintable() or each == "\n" else MARK for each in text)
