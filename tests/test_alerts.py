"""Each alert fires on the series that it is for and on no other, by Prometheus' own reckoning with made-up hours."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.watching import RULES, alerts, program, recorded

AGGREGATOR = 'job="fedqueue-aggregator",instance="a"'
CLIENT = 'job="fedqueue-client",instance="c"'
LAST_UPDATE = "fedqueue_institution_last_update_timestamp_seconds"
DAY = 86_400

# A value for each of 240 minutes. The clock starts at 0, so that a timestamp is a number of seconds into the test.
HEALTHY = {
    f"up{{{AGGREGATOR}}}": "1x240",
    f"up{{{CLIENT}}}": "1x240",
    'up{job="rabbitmq",instance="b"}': "1x240",
    f"fedqueue_ready{{{AGGREGATOR}}}": "1x240",
    f"fedqueue_ready{{{CLIENT}}}": "1x240",
    f"fedqueue_leading{{{AGGREGATOR}}}": "1x240",
    f'fedqueue_phase{{{AGGREGATOR},phase="running"}}': "1x240",
    f'fedqueue_phase{{{AGGREGATOR},phase="paused"}}': "0x240",
    f'fedqueue_phase{{{AGGREGATOR},phase="finished"}}': "0x240",
    f"fedqueue_run_started_timestamp_seconds{{{AGGREGATOR}}}": "0x240",
    f"fedqueue_version_committed_timestamp_seconds{{{AGGREGATOR}}}": "0+60x240",
    f'{LAST_UPDATE}{{{AGGREGATOR},institution="north"}}': "0+60x240",
    f'{LAST_UPDATE}{{{AGGREGATOR},institution="south"}}': "0+60x240",
    f'fedqueue_institution_active{{{AGGREGATOR},institution="north"}}': "1x240",
    f'fedqueue_institution_active{{{AGGREGATOR},institution="south"}}': "1x240",
    f'fedqueue_institution_quarantined{{{AGGREGATOR},institution="north"}}': "0x240",
    f'fedqueue_institution_epsilon_spent{{{AGGREGATOR},institution="north"}}': "2.6x240",
    f"fedqueue_epsilon_budget{{{AGGREGATOR}}}": "3x240",
    f'fedqueue_held_out_metric{{{AGGREGATOR},metric="auc"}}': "0.77x240",
    f'fedqueue_held_out_metric_best{{{AGGREGATOR},metric="auc"}}': "0.8x240",
    f"fedqueue_certificate_expiry_timestamp_seconds{{{AGGREGATOR}}}": f"{30 * DAY}x240",
    'rabbitmq_detailed_queue_messages_ready{vhost="v",queue="fl.upd.north"}': "0 3 " * 120,
    'rabbitmq_detailed_queue_messages{vhost="v",queue="fl.dlq"}': "0x240",
    'rabbitmq_alarms_memory_used_watermark{job="rabbitmq",instance="b"}': "0x240",
    'rabbitmq_alarms_free_disk_space_watermark{job="rabbitmq",instance="b"}': "0x240",
    'rabbitmq_disk_space_available_bytes{job="rabbitmq",instance="b"}': "16e9x240",
    'rabbitmq_disk_space_available_limit_bytes{job="rabbitmq",instance="b"}': "10e9x240",
}
NORTH = 'institution="north"'
RUNNING, PAUSED, FINISHED = (f'fedqueue_phase{{{AGGREGATOR},phase="{phase}"}}' for phase in ("running", "paused", "finished"))
UPDATES_OF_NORTH = f"{LAST_UPDATE}{{{AGGREGATOR},{NORTH}}}"
QUEUE = 'rabbitmq_detailed_queue_messages_ready{vhost="v",queue="fl.upd.north"}'
SPENT = f"fedqueue_institution_epsilon_spent{{{AGGREGATOR},{NORTH}}}"
METRIC = f'fedqueue_held_out_metric{{{AGGREGATOR},metric="auc"}}'
CERTIFICATE = f"fedqueue_certificate_expiry_timestamp_seconds{{{AGGREGATOR}}}"
PAUSE = {RUNNING: "1 0x239", PAUSED: "0 1x239"}

WARNING, CRITICAL, INFO = 'severity="warning"', 'severity="critical"', 'severity="info"'
SILENT = f'InstitutionSilent",{NORTH},{WARNING}'
ENDS, ENDS_SOON = (
    f'{name}",{AGGREGATOR},{severity}' for name, severity in (("CertificateEnds", WARNING), ("CertificateEndsSoon", CRITICAL))
)

# After four hours, 14,400 s: what differs from the healthy federation, and what fires.
CASES: dict[str, tuple[dict[str, str | None], list[str]]] = {
    "all is well": ({}, []),
    "an institution sent its last update 67 minutes ago": ({UPDATES_OF_NORTH: "10380x240"}, [SILENT]),
    "its last update is 64 minutes old": ({UPDATES_OF_NORTH: "10560x240"}, []),
    "it has never sent one": ({UPDATES_OF_NORTH: None}, [SILENT]),
    "it has never sent one in a run that is 50 minutes old": (
        {UPDATES_OF_NORTH: None, f"fedqueue_run_started_timestamp_seconds{{{AGGREGATOR}}}": "11400x240"},
        [],
    ),
    "the aggregator takes a silent one for away": (
        {UPDATES_OF_NORTH: "1000x240", f"fedqueue_institution_active{{{AGGREGATOR},{NORTH}}}": "0x240"},
        [SILENT],
    ),
    "a silent one is in quarantine": (
        {UPDATES_OF_NORTH: "1000x240", f"fedqueue_institution_quarantined{{{AGGREGATOR},{NORTH}}}": "1x240"},
        [],
    ),
    "a silent one has spent its budget": (
        {UPDATES_OF_NORTH: "1000x240", SPENT: "2.95x240"},
        [f'EpsilonNearlySpent",{NORTH},{INFO}'],
    ),
    "a silent one has spent 93 % of its budget": (
        {UPDATES_OF_NORTH: "1000x240", SPENT: "2.79x240"},
        [SILENT, f'EpsilonNearlySpent",{NORTH},{INFO}'],
    ),
    "a new leader does not know of the update that its predecessor settled 40 minutes ago": (
        {UPDATES_OF_NORTH: "0+60x200 stale"},
        [],
    ),
    "a silent one was removed": (
        {UPDATES_OF_NORTH: "1000x100 stale", f"fedqueue_institution_active{{{AGGREGATOR},{NORTH}}}": "1x100 stale"},
        [],
    ),
    "the run is paused": ({UPDATES_OF_NORTH: "1000x240", QUEUE: "3x240", **PAUSE}, []),
    "a queue fills": ({QUEUE: "0+1x240"}, [f'UpdateQueueGrowing",queue="fl.upd.north",{WARNING},vhost="v"']),
    "a queue is full and stays so": ({QUEUE: "9x240"}, [f'UpdateQueueGrowing",queue="fl.upd.north",{WARNING},vhost="v"']),
    "a long queue is worked off": ({QUEUE: "500-1x240"}, []),
    "one dead letter": (
        {'rabbitmq_detailed_queue_messages{vhost="v",queue="fl.dlq"}': "0x239 1"},
        [f'DeadLetters",{WARNING},vhost="v"'],
    ),
    "91 % of epsilon are spent": ({SPENT: "2.73x240"}, [f'EpsilonNearlySpent",{NORTH},{INFO}']),
    "90 % of epsilon are spent": ({SPENT: "2.69x240"}, []),
    "a figure is 6 % below its best": ({METRIC: "0.75x240"}, [f'MetricWorse",metric="auc",{WARNING}']),
    "a loss is 25 % above its best": ({METRIC: "1x240"}, [f'MetricWorse",metric="auc",{WARNING}']),
    "a figure was worse for a moment only": ({METRIC: "0.77x230 0.5x5 0.77x5"}, []),
    "no version for 67 minutes": (
        {f"fedqueue_version_committed_timestamp_seconds{{{AGGREGATOR}}}": "10380x240"},
        [f'NoNewVersion",{WARNING}'],
    ),
    "no version for long in a pause": ({f"fedqueue_version_committed_timestamp_seconds{{{AGGREGATOR}}}": "1x240", **PAUSE}, []),
    "a client has lost its broker": ({f"fedqueue_ready{{{CLIENT}}}": "1x200 0x40"}, [f'WorkerNotReady",{CLIENT},{WARNING}']),
    "a client was not ready for three minutes": ({f"fedqueue_ready{{{CLIENT}}}": "1x236 0x4"}, []),
    "a client is down": ({f"up{{{CLIENT}}}": "1x200 0x40"}, [f'WorkerDown",{CLIENT},{CRITICAL}']),
    "the aggregator is gone": (
        {f"up{{{AGGREGATOR}}}": "1x200 0x40", f"fedqueue_leading{{{AGGREGATOR}}}": "1x200 stale"},
        [f'WorkerDown",{AGGREGATOR},{CRITICAL}', f'NoLeader",{CRITICAL}'],
    ),
    "an aggregator runs and does not lead": ({f"fedqueue_leading{{{AGGREGATOR}}}": "0x240"}, [f'NoLeader",{CRITICAL}']),
    "a second one stands by": ({'fedqueue_leading{job="fedqueue-aggregator",instance="z"}': "0x240"}, []),
    "a bank's own Prometheus asks its client alone": ({name: None for name in HEALTHY if CLIENT not in name}, []),
    "the run is finished and everybody has gone": (
        {
            f"up{{{AGGREGATOR}}}": "1x200 0x40",
            f"up{{{CLIENT}}}": "1x200 0x40",
            f"fedqueue_leading{{{AGGREGATOR}}}": "1x200 stale",
            RUNNING: "1x190 0x10 stale",
            FINISHED: "0x190 1x10 stale",
        },
        [],
    ),
    "a certificate ends in 20 days": ({CERTIFICATE: f"{20 * DAY + 14_400}x240"}, [ENDS]),
    "a certificate ends in two days": ({CERTIFICATE: f"{2 * DAY + 14_400}x240"}, [ENDS, ENDS_SOON]),
    "a certificate ends in 22 days": ({CERTIFICATE: f"{22 * DAY + 14_400}x240"}, []),
    "the broker is out of memory": (
        {'rabbitmq_alarms_memory_used_watermark{job="rabbitmq",instance="b"}': "0x239 1"},
        [f'BrokerAlarm",instance="b",{CRITICAL}'],
    ),
    "the broker is out of disk": (
        {'rabbitmq_alarms_free_disk_space_watermark{job="rabbitmq",instance="b"}': "0x239 1"},
        [f'BrokerAlarm",instance="b",{CRITICAL}'],
    ),
    "the broker's disk gets short": (
        {'rabbitmq_disk_space_available_bytes{job="rabbitmq",instance="b"}': "14e9x240"},
        [f'BrokerDiskShort",instance="b",{WARNING}'],
    ),
    "the broker is away": (
        {'up{job="rabbitmq",instance="b"}': "1x200 0x40"},
        [f'BrokerDown",instance="b",job="rabbitmq",{CRITICAL}'],
    ),
}


@pytest.mark.prometheus
@pytest.mark.parametrize("case", CASES)
def test_what_fires_after_four_hours(case: str, tmp_path: Path) -> None:
    changes, firing = CASES[case]
    series = [{"series": name, "values": values} for name, values in (HEALTHY | changes).items() if values is not None]
    expected = [{"labels": f'ALERTS{{alertstate="firing",alertname="{each}}}', "value": 1} for each in firing]
    asked = {"expr": 'ALERTS{alertstate="firing"}', "eval_time": "240m", "exp_samples": expected}
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [asked]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))

    ran = subprocess.run(
        [program("promtool"), "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_fires_in_some_case() -> None:
    fired = {each.partition('"')[0] for _, firing in CASES.values() for each in firing}

    assert fired == {alert.name for alert in alerts()}


def test_an_alert_compares_one_figure_with_one_number_and_says_what_to_do_and_where_to_read_on() -> None:
    anchors = set()
    for alert in alerts():
        assert alert.figure, alert.name
        assert alert.document["labels"].keys() == {"severity"}
        assert alert.document["labels"]["severity"] in {"critical", "warning", "info"}
        annotations = alert.document["annotations"]
        assert annotations.keys() == {"summary", "description", "runbook_url"}
        assert all(annotations[name].endswith(".") for name in ("summary", "description"))
        page, anchor = annotations["runbook_url"].split("#")
        assert page == "docs/operations.md"
        anchors.add(anchor)
    assert anchors == {
        "institution-silent",
        "queue-growing",
        "dead-letters",
        "epsilon-nearly-spent",
        "metric-worse",
        "no-new-version",
        "worker-not-ready",
        "no-leader",
        "certificate-ends",
        "broker-alarm",
    }


def test_every_recorded_figure_is_used() -> None:
    text = RULES.read_text()

    for name in recorded():
        assert text.count(name) > 1, name
