import io
import json

from rich.console import Console

from operator_console.history import History
from operator_console.status import screen, status_object, waiting_text
from operator_console.view_state import Shown, view_of
from tests.operator_console.conftest import RUN, Finished

DEPTHS = {"fl.upd.bank-a": 2, "fl.upd.bank-b": 0, "fl.upd.bank-c": 1, "fl.dlq": 4, "fl.lineage": 40}


def object_of(history: History, depths: dict[str, int] | None) -> dict[str, object]:
    view = view_of(history, Shown("Toy", "auc"), now_ms=history.links[-1].at_ms)
    return json.loads(json.dumps(status_object(history, view, depths), allow_nan=False))  # type: ignore[no-any-return]


def test_the_object_tells_where_the_run_stands(finished: Finished):
    found = object_of(finished.history, DEPTHS)
    assert (found["schema"], found["run_id"], found["task"], found["phase"]) == (1, RUN, "toy", "finished")
    assert found["version"] == finished.history.links[-1].manifest.version
    assert found["updates"]["aggregated"] >= 30  # type: ignore[index]
    assert found["target_updates"] == 30
    rows = {row["id"]: row for row in found["institutions"]}  # type: ignore[attr-defined]
    assert rows["bank-a"]["waiting_messages"] == 2
    assert rows["bank-c"]["updates"] < rows["bank-a"]["updates"]
    assert {row["state"] for row in rows.values()} == {"finished"}


def test_the_object_has_the_same_keys_without_the_management_api(finished: Finished):
    with_queues, without = object_of(finished.history, DEPTHS), object_of(finished.history, None)
    assert with_queues.keys() == without.keys()
    assert without["queues"] is None
    assert [row["waiting_messages"] for row in without["institutions"]] == [None, None, None]  # type: ignore[attr-defined]


def test_the_screen_begins_with_what_needs_attention(finished: Finished):
    view = view_of(finished.history, Shown("Toy", "auc"), now_ms=finished.history.links[-1].at_ms)
    console = Console(file=io.StringIO(), width=100)
    console.print(screen(view, DEPTHS))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "4 messages lie in fl.dlq" in lines[0]
    assert lines[-1].strip() == "messages waiting for the aggregator: 2 from bank-a, 1 from bank-c; dead letters: 4"


def test_silence_of_the_management_api_is_said():
    assert waiting_text(None) == "queues: the management API does not answer"
