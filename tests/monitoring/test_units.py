"""The units of systemd: what they wait for is what the workers tell."""

import re
from configparser import RawConfigParser
from pathlib import Path

import pytest

from monitoring.systemd import STARTING_SECONDS, TICK_SECONDS

PROJECT = Path(__file__).parents[2]
UNITS = {
    "aggregator": re.findall(r"```ini\n(.*?)```", (PROJECT / "docs" / "services.md").read_text(), re.DOTALL)[0],
    "client": (PROJECT / "operator_console" / "settings_templates" / "fedqueue-client.service.j2").read_text(),
}


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_a_unit_waits_for_what_its_worker_tells(unit: str) -> None:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit)
    service = dict(parser["Service"])

    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert float(service["WatchdogSec"]) >= 10 * TICK_SECONDS
    assert float(service["TimeoutStartSec"]) >= STARTING_SECONDS
    assert service["Restart"] == "on-failure"
    assert "AF_UNIX" in service["RestrictAddressFamilies"].split()  # over which it is told
