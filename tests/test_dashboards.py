"""Grafana's dashboards by Grafana's own types, and every figure in them by name."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from broker_config.node import PrivateNode
from tests.watching import CONFIGURATION, DASHBOARDS, MONITORING, PROJECT, RULES, drawn, metrics_in, panels, program, recorded

PROVISIONING = MONITORING / "grafana" / "provisioning"


@pytest.fixture(params=DASHBOARDS, ids=lambda file: file.stem)
def dashboard(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text())


def lost(written: Any, read: Any, place: str = "") -> Iterator[str]:
    """What was written and did not come back."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            yield from lost(value, read.get(key, ...), f"{place}.{key}")
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for number, (one, other) in enumerate(zip(written, read, strict=True)):
            yield from lost(one, other, f"{place}[{number}]")
    elif written != read:
        yield place


def test_grafanas_own_types_know_every_word_of_a_dashboard(dashboard: dict) -> None:
    register_default_plugins()

    read = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))

    assert list(lost(dashboard, read)) == []


def test_a_misspelled_word_of_a_panel_is_seen() -> None:
    register_default_plugins()
    (_, panel), *_ = panels()
    misspelled = {"panels": [panel | {"options": {"colourMode": "value"}}]}

    read = json.loads(JSONEncoder().encode(Dashboard.from_json(misspelled)))

    assert list(lost(misspelled, read)) == [".panels[0].options.colourMode"]


def test_panels_have_one_number_each_do_not_overlap_and_say_what_they_show(dashboard: dict) -> None:
    numbers = [panel["id"] for panel in dashboard["panels"]]
    taken: set[tuple[int, int]] = set()

    assert len(set(numbers)) == len(numbers)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        squares = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not squares & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= squares
        assert panel["title"]
        assert panel["description"].endswith((".", ":")), panel["title"]


def test_every_panel_asks_the_one_source_that_is_provided(dashboard: dict) -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    asked = [panel["datasource"] for panel in dashboard["panels"]]
    asked += [target["datasource"] for panel in dashboard["panels"] for target in panel["targets"]]

    assert all(each == {"type": source["type"], "uid": source["uid"]} for each in asked)
    assert source["url"] == "http://prometheus:9090"


def test_the_dashboards_are_where_grafana_looks_for_them() -> None:
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "fedqueue.yml").read_text())["providers"]
    volumes = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]["grafana"]["volumes"]
    uids = [json.loads(file.read_text())["uid"] for file in DASHBOARDS]

    assert f"./deploy/monitoring/grafana/dashboards:{provider['options']['path']}:ro" in volumes
    assert "./deploy/monitoring/grafana/provisioning:/etc/grafana/provisioning:ro" in volumes
    assert len(set(uids)) == len(DASHBOARDS) == 3


def all_expressions() -> list[tuple[str, str]]:
    return [*drawn(), *((name, expression) for name, expression in recorded().items())]


def test_every_figure_of_ours_is_documented() -> None:
    documented = set(re.findall(r"`(fedqueue_\w+)", (PROJECT / "docs" / "metrics.md").read_text()))
    text = RULES.read_text()
    used = {name for _, expression in all_expressions() for name in metrics_in(expression)} | metrics_in(text)

    assert {name for name in used if name.startswith("fedqueue_")} <= documented


def test_every_recorded_figure_that_is_drawn_exists() -> None:
    named = {name for _, expression in drawn() for name in re.findall(r"\w+:\w+:\w+|fedqueue_\w+:\w+", expression)}

    assert named <= recorded().keys()


@pytest.mark.rabbitmq
def test_every_figure_of_the_broker_exists_on_this_rabbitmq(private_node: PrivateNode) -> None:
    used = {name for _, expression in all_expressions() for name in metrics_in(expression)} | metrics_in(RULES.read_text())
    jobs = yaml.safe_load(CONFIGURATION.read_text())["scrape_configs"]
    told: set[str] = set()
    for job in jobs:
        if job["job_name"].startswith("rabbitmq"):
            place = f"http://127.0.0.1:{private_node.record.prometheus_port}{job.get('metrics_path', '/metrics')}"
            text = httpx.get(place, params=job.get("params")).text
            told |= {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}

    assert {name for name in used if name.startswith("rabbitmq_")} <= told


@pytest.mark.prometheus
def test_prometheus_reads_every_expression_of_the_dashboards(tmp_path: Path) -> None:
    asked = [
        {"record": f"drawn:{number}", "expr": expression.replace("$instance", "a:9464")}
        for number, (_, expression) in enumerate(drawn())
    ]
    (tmp_path / "drawn.yml").write_text(yaml.safe_dump({"groups": [{"name": "drawn", "rules": asked}]}))

    ran = subprocess.run(
        [program("promtool"), "check", "rules", tmp_path / "drawn.yml"], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.prometheus
def test_prometheus_accepts_its_settings_and_rules(tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text(RULES.read_text())
    settings = CONFIGURATION.read_text()
    for name in ("ca.pem", "certificate.pem", "key.pem"):
        (tmp_path / name).touch()
    (tmp_path / "prometheus.yml").write_text(settings.replace("/monitoring/", f"{tmp_path}/"))

    ran = subprocess.run(
        [program("promtool"), "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "22 rules found" in ran.stdout
