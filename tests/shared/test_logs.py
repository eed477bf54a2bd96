import io
import json
import os
import re
import subprocess
import sys

import pytest
import structlog

from shared.logs import configure


def lines_of(code: str) -> list[dict[str, object]]:
    """What a fresh process logs: structlog is configured once per process, and this one has its own configuration."""
    program = f"import structlog\nfrom shared.logs import configure\nlog = structlog.get_logger()\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_every_event_is_one_line_of_json_where_nobody_looks():
    (line,) = lines_of('configure()\nlog.info("delivery", institution="bank-a", sequence=3)')
    assert {key: line[key] for key in ("event", "level", "institution", "sequence")} == {
        "event": "delivery",
        "level": "info",
        "institution": "bank-a",
        "sequence": 3,
    }
    assert str(line["timestamp"]).endswith("Z")


def test_events_below_the_level_are_not_written():
    assert [line["event"] for line in lines_of('configure(level="warning")\nlog.info("a")\nlog.warning("b")')] == ["b"]


def test_a_new_line_in_a_value_does_not_make_a_second_event():
    assert len(lines_of('configure()\nlog.info("x", reason="one\\n{\\"event\\": \\"forged\\"}")')) == 1


@pytest.mark.parametrize("level", ["debug", "INFO"])
def test_levels_are_named_in_any_case(level):
    assert len(lines_of(f'configure(level="{level}")\nlog.info("x")')) == 1


def test_a_strangers_text_cannot_move_the_cursor_of_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    configure(stream=terminal)
    structlog.get_logger().warning("delivery", reason="a\x1b[2Jb\x9bc\r", message="x\ny")
    (line,) = terminal.getvalue().splitlines()
    coloured = re.sub(r"\x1b\[[0-9;]*m", "", line)
    assert coloured.isprintable()
    assert "reason=a\N{REPLACEMENT CHARACTER}[2Jb" in coloured
