"""A real Prometheus asks a real federation, over TLS and with its noise: every expression has an answer, and silence is heard."""

import json
import signal
from collections.abc import Iterator

import pytest

from tests.tls import TlsNode
from tests.watched_federation import Watched, eventually, unanswered, watching

pytestmark = [pytest.mark.long, pytest.mark.prometheus, pytest.mark.timeout(400)]

INSTITUTIONS = ["cleveland-clinic", "budapest"]
SILENT = "budapest"
# In the test's copy of the rules hours become seconds.
SHORTENED = {r"> 3600$": "> 15", r"\[15m\]": "[5s]", r"offset 15m": "offset 5s", r"for: \w+": "for: 1s"}


@pytest.fixture(scope="module")
def watched(tls_node: TlsNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Two institutions learn while Prometheus looks on."""
    with watching(tls_node, tmp_path_factory.mktemp("watched"), INSTITUTIONS, SHORTENED) as started:
        yield started


def test_every_expression_of_the_alerts_and_dashboards_has_an_answer(watched: Watched) -> None:
    left: list[str] = []

    def all_answered() -> bool:
        left[:] = unanswered(watched, watched.addresses[INSTITUTIONS[0]])
        return not left

    assert eventually(all_answered), left
    targets = watched.prometheus.get("targets")["activeTargets"]
    assert {(each["labels"]["job"], each["health"], each["lastError"]) for each in targets} == {
        (job, "up", "") for job in ("fedqueue-aggregator", "fedqueue-client", "rabbitmq", "rabbitmq-queues")
    }


def test_rules_run_without_a_complaint(watched: Watched) -> None:
    def complaints() -> list[tuple[str, str]]:
        """Of rules that failed, or were not tried yet."""
        rules = [rule for group in watched.prometheus.get("rules").get("groups", []) for rule in group["rules"]]
        found = [(rule["name"], rule.get("lastError", rule["health"])) for rule in rules if rule["health"] != "ok"]
        return found if rules else [("none", "there are no rules yet")]

    eventually(lambda: not complaints())
    assert complaints() == []


def test_an_institution_that_is_stopped_is_called_silent_and_no_more_once_it_goes_on(watched: Watched) -> None:
    prometheus = watched.prometheus
    assert eventually(lambda: prometheus.samples(f'institution:fedqueue_silent:seconds{{institution="{SILENT}"}} < 15'))
    watched.clients[SILENT].send_signal(signal.SIGSTOP)

    alert = eventually(lambda: prometheus.alert("InstitutionSilent", institution=SILENT))

    assert isinstance(alert, dict), json.dumps(prometheus.get("alerts"))
    assert alert["labels"]["severity"] == "warning"
    assert alert["annotations"]["summary"].startswith(f"{SILENT} has sent no update for ")
    assert alert["annotations"]["runbook_url"] == "docs/operations.md#institution-silent"
    assert prometheus.alert("InstitutionSilent", institution=INSTITUTIONS[0]) is None
    assert eventually(lambda: prometheus.alert("WorkerDown", instance=watched.addresses[SILENT]))
    assert prometheus.samples("ALERTS")
    watched.clients[SILENT].send_signal(signal.SIGCONT)
    assert eventually(lambda: prometheus.alert("InstitutionSilent", institution=SILENT) is None)
