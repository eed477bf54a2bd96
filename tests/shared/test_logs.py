import json
import os
import subprocess
import sys

import pytest


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
