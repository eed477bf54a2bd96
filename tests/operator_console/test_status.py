import io
import json
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from aggregator_worker.genesis import found
from broker_config.logins import Logins, create, save
from operator_console.federation_folder import Facts, FederationFolder, InstitutionFacts
from operator_console.history import History
from operator_console.live_view import render, span_text, watch
from operator_console.status_screen import Around, best_text, by_urgency, completed, status_object, view_from, waiting_text
from operator_console.status_session import StatusSession
from operator_console.view_state import Row, Shown, ViewState, view_of
from shared.messages import Entry
from tests.conftest import RabbitmqServer, eventually
from tests.operator_console.conftest import PLAN, RUN, Finished
from tests.operator_console.test_summary import BINARY

DEPTHS = {"fl.upd.bank-a": 2, "fl.upd.bank-b": 0, "fl.upd.bank-c": 1, "fl.dlq": 4, "fl.lineage": 40}


NOW = datetime(2026, 11, 21, 18, 0, tzinfo=UTC)


def object_of(history: History, depths: dict[str, int] | None) -> dict[str, object]:
    view = view_of(history, Shown("Toy", "auc"), now_ms=history.links[-1].at_ms)
    return json.loads(json.dumps(status_object(history, view, Around(depths), NOW), allow_nan=False))  # type: ignore[no-any-return]


def printed(view: ViewState, width: int = 100, **options: object) -> list[str]:
    console = Console(file=io.StringIO(), width=width, **options)  # type: ignore[arg-type]
    console.print(render(view))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_the_object_tells_where_the_run_stands(finished: Finished):
    found = object_of(finished.history, DEPTHS)
    assert (found["schema"], found["run_id"], found["task"], found["phase"]) == (3, RUN, "toy", "finished")
    assert (found["connected"], found["away"], found["at_ms"]) == (True, None, 1795284000000)
    assert found["version"] == finished.history.links[-1].manifest.version
    assert found["updates"]["aggregated"] >= 30  # type: ignore[index]
    assert found["target_updates"] == 30
    assert found["best"] is None
    rows = {row["id"]: row for row in found["institutions"]}  # type: ignore[attr-defined]
    assert rows["bank-a"]["waiting_messages"] == 2
    assert rows["bank-c"]["updates"] < rows["bank-a"]["updates"]
    assert {row["state"] for row in rows.values()} == {"finished"}


def test_the_best_version_is_one_line_of_the_screen():
    best = {"version": 25, "metric": "auc", "figure": 0.91557, "figure_of_last": 0.9}
    assert best_text(best) == "best so far: version 25, AUC 0.916 on held-out rows"


def test_the_object_tells_why_an_institution_gives_no_more(finished: Finished):
    view = view_of(finished.history, Shown("Toy", "auc"), now_ms=0)
    worst = replace(view.rows[0], standing="refuses the plan: max_epsilon", strikes=1.5)
    refusing = replace(view, rows=(worst, *view.rows[1:]))
    rows = status_object(finished.history, refusing, Around(), NOW)["institutions"]
    assert [row["standing"] for row in rows] == ["refuses the plan: max_epsilon", None, None]
    assert [row["strikes"] for row in rows] == [1.5, 0.0, 0.0]


def test_the_object_has_the_same_keys_without_the_management_api(finished: Finished):
    with_queues, without = object_of(finished.history, DEPTHS), object_of(finished.history, None)
    assert with_queues.keys() == without.keys()
    assert without["queues"] is None
    assert [row["waiting_messages"] for row in without["institutions"]] == [None, None, None]  # type: ignore[attr-defined]


def test_the_screen_begins_with_what_needs_attention_then_warnings_and_ends_with_what_waits(finished: Finished):
    view = view_of(finished.history, Shown("Toy", "auc"), now_ms=finished.history.links[-1].at_ms)
    around = Around(DEPTHS, aggregators=0, ends={"bank-a": NOW + timedelta(days=2, hours=1)})
    lines = printed(completed(view, around, NOW))
    assert "4 messages lie in fl.dlq" in lines[0]  # a finished run needs no aggregator
    assert "the certificate of bank-a ends in 2 days (2026-11-23)" in lines[1]
    assert lines[-1].strip() == "messages waiting for the aggregator: 2 from bank-a, 1 from bank-c; dead letters: 4"


def test_a_run_without_an_aggregator_needs_attention_before_anything_else(finished: Finished):
    view = replace(view_of(finished.history, Shown("Toy", "auc"), now_ms=0), phase="running")
    assert (completed(view, Around(DEPTHS, aggregators=0), NOW).urgent[0]).startswith("No aggregator is at the broker")
    assert (completed(view, Around(DEPTHS, aggregators=1), NOW).urgent[0]).startswith("4 messages lie in fl.dlq")
    assert (completed(view, Around(DEPTHS, aggregators=None), NOW).urgent[0]).startswith("4 messages lie in fl.dlq")


def crowd(count: int) -> ViewState:
    """So many institutions at work, and behind them one that is killed, one in quarantine, one that is silent."""
    calm = Row("", "training", 20, 1, 1 / count, 1 / count, 1.5, 3.0, 0)
    calm_ones = [replace(calm, institution=f"a-clinic-with-quite-a-long-name-{number:02}") for number in range(count - 3)]
    hurt = [replace(calm, institution=f"z-{state}", state=state) for state in ("silent", "quarantined", "killed")]
    return ViewState(
        "Thirty clinics", 41, "running", "", 600, 900, "auc", (0.5, 0.7), 93784.0, 3.0, (*calm_ones, *hurt), ("12 s  said",)
    )


def test_of_thirty_institutions_those_that_need_attention_are_on_top_and_80_columns_are_enough():
    view = completed(crowd(30), Around(DEPTHS), NOW)
    for lines in (printed(view, 80), printed(view, 80, height=24, force_terminal=True, color_system=None)):
        assert max(map(len, lines)) <= 80
        names = [line.split()[0] for line in lines if line.strip().startswith(("z-", "a-clinic"))]
        assert names[:3] == ["z-killed", "z-silent", "z-quarantined"]
    everybody = [line for line in printed(view, 80) if line.strip().startswith(("z-", "a-clinic"))]
    assert len(everybody) == 30
    lines = printed(view, 80, height=24, force_terminal=True, color_system=None)
    assert len(lines) <= 24
    assert "which need less attention" in "".join(lines)


def test_a_pipe_gets_no_colour():
    view = completed(crowd(5), Around(DEPTHS), NOW)
    assert "\x1b" not in "".join(printed(view))
    assert "\x1b" in "".join(printed(view, force_terminal=True, color_system="standard"))


def test_long_times_are_told_in_their_two_largest_units():
    assert [span_text(seconds) for seconds in (0.4, 12, 299, 300, 3599, 3600, 7380, 93784, 172800)] == [
        *("0 s", "12 s", "299 s", "5 min", "59 min", "1 h", "2 h 3 min", "1 d 2 h", "2 d"),
    ]


def test_what_was_seen_last_is_drawn_as_it_was(finished: Finished):
    view = view_of(finished.history, Shown("Toy", "auc"), now_ms=finished.history.links[-1].at_ms)
    found = object_of(finished.history, DEPTHS)
    again = view_from(found)
    assert again.rows == by_urgency(view.rows)
    assert (again.title, again.version, again.updates, again.metric_values) == (
        *("Toy", view.version, view.updates, view.metric_values[-1:]),
    )
    with pytest.raises(KeyError):
        view_from({name: value for name, value in found.items() if name != "version"})


def test_silence_of_the_management_api_is_said():
    assert waiting_text(None) == "queues: the management API does not answer"


def a_folder(path: Path, logins: Logins) -> FederationFolder:
    """What `fedqueue init` would have written for two banks."""
    folder = FederationFolder(path / "federation")
    institutions = [InstitutionFacts(id=each, title=each.upper()) for each in ("bank-a", "bank-b")]
    folder.prepare(BINARY, logins)
    folder.keep(Facts(run_id=RUN, task="toy", title="Toy", institutions=institutions))
    return folder


def said_by(folder: FederationFolder, *options: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("fedqueue"), "status", "--dir", str(folder.path), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.rabbitmq
def test_the_command_answers_from_a_real_broker(rabbitmq_server: RabbitmqServer, tmp_path: Path):
    folder = a_folder(tmp_path, rabbitmq_server.logins)
    table = {alias: Entry(incarnation=1) for alias in folder.names()}
    found(rabbitmq_server.connect("operator"), run_id=RUN, plan=PLAN, parameters={"w": np.zeros(3, np.float32)}, table=table)
    answer = said_by(folder, "--json")
    assert answer.returncode == 0, answer.stderr
    status = json.loads(answer.stdout)
    assert (status["version"], status["run_id"], status["connected"]) == (0, RUN, True)
    assert [(row["id"], row["state"]) for row in status["institutions"]] == [("bank-a", "waiting"), ("bank-b", "waiting")]
    assert "fl.dlq" in status["queues"]
    shown = said_by(folder)
    assert not any(word in shown.stdout for word in rabbitmq_server.logins.users.values())
    no_aggregator = " ! No aggregator is at the broker, so nothing is folded: start"  # once its statistics are there
    assert shown.stdout.startswith((" ! bank-a has not said hello yet; is its worker running? (1 more like it).", no_aggregator))
    assert (folder.path / "last-status.json").stat().st_mode & 0o077 == 0

    away(folder)
    gone = said_by(folder, "--json")
    assert gone.returncode == 1
    last = json.loads(gone.stdout)
    assert (last["connected"], last["version"], last["institutions"]) == (False, 0, status["institutions"])
    assert "127.0.0.1:1" in last["away"]
    gone = said_by(folder)
    assert gone.returncode == 1
    assert gone.stderr == ""
    assert gone.stdout.startswith(" ! The broker does not answer:")
    assert "What follows was seen" in gone.stdout
    assert "bank-b" in gone.stdout
    (folder.path / "last-status.json").write_text("half of i")
    assert said_by(folder).stderr.startswith("connect to 127.0.0.1:1")


def away(folder: FederationFolder) -> None:
    """Nobody listens at the address any more."""
    save(folder.logins().model_copy(update={"amqp": "amqp://127.0.0.1:1/away"}), folder.path)


@pytest.mark.rabbitmq
def test_a_watcher_says_what_needs_attention_first_and_stays_when_the_broker_hangs_up(
    rabbitmq_server: RabbitmqServer, tmp_path: Path
):
    folder = a_folder(tmp_path, rabbitmq_server.logins)
    table = {alias: Entry(incarnation=1) for alias in folder.names()}
    found(rabbitmq_server.connect("operator"), run_id=RUN, plan=PLAN, parameters={"w": np.zeros(3, np.float32)}, table=table)
    with closing(StatusSession(folder)) as session:
        console = Console(file=io.StringIO(), width=120)
        views = [session.tick(), None]
        watch(lambda: views.pop(0), console=console)
        assert console.file.getvalue().startswith("! ")  # type: ignore[attr-defined]

        def hung_up() -> bool:
            rabbitmq_server.drop("operator")  # those that the management API has heard of, some seconds late
            return session.tick().urgent[0].startswith("Away since")

        assert eventually(hung_up, 60)
        assert session.tick().version == 0
        assert eventually(lambda: not session.tick().urgent[0].startswith("Away since"))


def test_without_a_broker_the_command_says_so_in_one_line(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    closed = f"127.0.0.1:{port}"
    answer = said_by(a_folder(tmp_path, create(node=closed, management=f"http://{closed}", admin_password="x")))
    assert answer.returncode == 1
    assert closed in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_a_folder_without_a_federation_is_named(tmp_path: Path):
    answer = said_by(FederationFolder(tmp_path))
    assert answer.returncode == 2
    assert "broker.json" in answer.stderr
