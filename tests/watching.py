"""What deploy/monitoring asks of Prometheus, taken apart: recorded figures, alerts, and what each panel draws."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parent.parent
MONITORING = PROJECT / "deploy" / "monitoring"
RULES = MONITORING / "prometheus" / "alerts.yml"
CONFIGURATION = MONITORING / "prometheus" / "prometheus.yml"
DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))
METRIC = re.compile(r"\b(?:fedqueue|rabbitmq)_[a-z0-9_]+")
_BUCKETS = re.compile(r"_(bucket|sum|count)$")
_COMPARISON = re.compile(r"\s(>|<)\s([0-9.]+)$")


@dataclass(frozen=True)
class Alert:
    """One alert: the figure, and the number that it is compared with."""

    name: str
    figure: str
    document: dict


def rules() -> list[dict]:
    """Every rule, in the order of the file."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def recorded() -> dict[str, str]:
    """The recorded figures and how each is had."""
    return {rule["record"]: rule["expr"].strip() for rule in rules() if "record" in rule}


def alerts() -> list[Alert]:
    """The alerts; one that is no comparison of a figure with a number has no figure."""
    found = [(rule, rule["expr"].strip()) for rule in rules() if "alert" in rule]
    return [Alert(rule["alert"], _COMPARISON.sub("", expr) if _COMPARISON.search(expr) else "", rule) for rule, expr in found]


def panels() -> list[tuple[str, dict]]:
    """Dashboard and panel."""
    return [(file.stem, panel) for file in DASHBOARDS for panel in json.loads(file.read_text())["panels"]]


def drawn() -> list[tuple[str, str]]:
    """Where it is drawn, and the expression."""
    return [(f"{board}: {panel['title']}", target["expr"]) for board, panel in panels() for target in panel["targets"]]


def metrics_in(expression: str) -> set[str]:
    """The metrics of fedqueue and RabbitMQ in an expression, a histogram's by its own name; recorded figures are none."""
    without_recorded = re.sub(r"\w*:\w+:\w+|fedqueue_\w+:\w+", "", expression)
    return {_BUCKETS.sub("", name) for name in METRIC.findall(without_recorded) if not name.endswith("alarms_")}


def program(name: str) -> str:
    """Where Prometheus' program is; absent, a skip. `make test-long` installs it first, and stops in CI where it cannot."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("FEDQUEUE_REQUIRE_PROMETHEUS"):
            raise FileNotFoundError(f"{name} is not installed: run setup/prometheus")
        pytest.skip(f"{name} is not installed; setup/prometheus installs it")
    return found
