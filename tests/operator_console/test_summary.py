import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from aggregator_worker.ending import Best, Progress
from operator_console.history import History
from operator_console.live_view import metric_name
from operator_console.summary import (
    Comparison,
    Summary,
    beaten,
    best_at_home,
    best_version,
    final_table,
    findings,
    summarise,
    threshold_rule,
    write_summary,
)
from shared.messages import BlobName
from shared.plan import Ending
from shared.tasks.spec import TaskSpec, parse_task
from tests.operator_console.conftest import EXAMPLES, Finished

BINARY = """
name = "toy"
kind = "binary"
[label]
column = "y"
positive = ["1"]
base_rate = 0.175
[[numeric]]
columns = "x"
minimum = 0
maximum = 1
[model]
type = "logistic"
"""
REGRESSION = """
name = "toy"
kind = "regression"
[label]
column = "y"
minimum = 0
maximum = 10
[[numeric]]
columns = "x"
minimum = 0
maximum = 1
[model]
type = "linear"
"""


def spec(text: str = BINARY) -> TaskSpec:
    return parse_task(text, source="task.toml")


def figures(auc: float | None) -> dict[str, float | None]:
    return {"auc": auc, "log_loss": 0.5, "accuracy": 0.8, "recall": 0.4, "f1": 0.45, "threshold": 0.21}


COMPARISON = Comparison(
    federated=figures(0.7),
    pooled=figures(0.75),
    alone={"bank-a": figures(0.61), "bank-b": figures(0.72), "bank-c": figures(None)},
    own_alone={"bank-a": figures(0.66), "bank-b": figures(0.64)},
    own_federated={"bank-a": figures(0.65), "bank-b": figures(0.68)},
    own_personalised={"bank-a": figures(0.657), "bank-b": figures(0.69)},
)


@pytest.fixture
def summary(finished: Finished) -> Summary:
    return summarise(spec(), finished.history, COMPARISON, seed=7, wall_seconds=12.3456)


def test_the_summary_has_every_key_that_scripts_rely_on(summary: Summary):
    assert {
        "schema",
        "task",
        "seed",
        "wall_seconds",
        "versions",
        "updates",
        "institutions",
        "federated",
        "pooled",
    } <= summary.keys()
    assert {"aggregated", "stale", "duplicate", "rejected"} <= summary["updates"].keys()
    wanted = "id num_examples updates mean_staleness total_weight epsilon_spent target_delta standing alone federated own"
    for each in summary["institutions"]:
        assert each.keys() == set(wanted.split())
        assert each["own"].keys() == {"alone", "federated", "personalised"}
        assert {"auc", "log_loss", "accuracy", "recall", "f1"} <= each["alone"].keys()


def test_the_summary_counts_what_the_run_did(summary: Summary, finished: Finished):
    assert summary["updates"]["aggregated"] == sum(each["updates"] for each in summary["institutions"]) >= 30
    assert summary["versions"] == finished.history.links[-1].manifest.version
    assert {each["id"]: each["num_examples"] for each in summary["institutions"]} == EXAMPLES
    assert (summary["seed"], summary["wall_seconds"], summary["phase"]) == (7, 12.346, "finished")


def test_a_figure_that_does_not_exist_is_null(summary: Summary, tmp_path: Path):
    write_summary(tmp_path / "summary.json", summary)
    bank_c = json.loads((tmp_path / "summary.json").read_text())["institutions"][2]
    assert bank_c["alone"]["auc"] is None
    assert bank_c["own"] == dict.fromkeys(("alone", "federated", "personalised"), dict.fromkeys(figures(0)))


def test_a_figure_that_is_not_a_number_is_null_too(finished: Finished):
    comparison = Comparison(federated=figures(float("nan")))
    assert summarise(spec(), finished.history, comparison, seed=0, wall_seconds=1)["federated"]["auc"] is None


def test_regression_has_its_own_figures(finished: Finished):
    alone = {"bank-a": {"rmse": 3.0}, "bank-b": {"rmse": 1.0}, "bank-c": {"rmse": 2.5}}
    comparison = Comparison(federated={"rmse": 2.0, "mae": 1.5, "r2": 0.25}, alone=alone)
    summary = summarise(spec(REGRESSION), finished.history, comparison, seed=0, wall_seconds=1)
    assert summary["federated"] == {"rmse": 2.0, "mae": 1.5, "r2": 0.25}
    assert summary["threshold_rule"] is None
    assert beaten(summary) == (2, 3)


def test_the_findings_count_banks_beaten_and_name_those_better_at_home(summary: Summary):
    assert findings(summary, {"bank-a": "The A Bank"}) == [
        "The federated model beats 1 of 2 institutions' own models on all test rows (AUC).",
        "On their own rows 1 of 2 do better with their own model than with it: The A Bank 0.660 against 0.650.",
        "Personalised, that is fine-tuned by each institution on its own rows, it does better there than untuned at 2 of 2, and "
        "better than the own model at 1; the own model is still the best of the three at 1: The A Bank 0.660 against 0.657.",
        "Accuracy, recall and F1: the 17.5% of rows with the highest scores are called positive, as many as in training.",
        f"Why the run ended: {summary['updates']['aggregated']} updates are aggregated.",
    ]


def test_the_best_version_is_told_beside_the_last_one(summary: Summary):
    last = summary["versions"]
    summary["best"] = {"version": last - 2, "metric": "auc", "figure": 0.7126, "figure_of_last": 0.7091}
    assert findings(summary)[-1] == (
        f"The best version by AUC on held-out rows is {last - 2}, with 0.713; the last, {last}, has 0.709. "
        "It was picked on these rows, which flatters it."
    )
    summary["best"] = {"version": last, "metric": "log_loss", "figure": 0.4, "figure_of_last": 0.4}
    said = f"The last version, {last}, is also the best by {metric_name('log_loss')} on held-out rows: 0.400."
    assert findings(summary)[-1] == said
    del summary["best"]
    assert "Why the run ended" in findings(summary)[-1]


def test_the_best_version_is_the_one_that_the_last_manifest_names(finished: Finished):
    history = History({})
    history.links, history.plan = list(finished.history.links), finished.history.plan
    assert history.plan is not None
    assert best_version(history) is None
    head = history.links[-1]
    progress = Progress(Best(3, 0.75, BlobName(hash="b" * 64, size=9)))
    scalars = progress.put_into(head.manifest.scalars)
    history.links[-1] = replace(head, manifest=head.manifest.model_copy(update={"scalars": scalars, "metrics": {"auc": 0.5}}))
    history.plan = history.plan.model_copy(update={"ending": Ending(metric="auc")})
    assert best_version(history) == {"version": 3, "metric": "auc", "figure": 0.75, "figure_of_last": 0.5}


def test_the_best_model_on_own_rows_is_named_also_where_less_is_better(summary: Summary):
    bank_a, bank_b, bank_c = summary["institutions"]
    assert [best_at_home(each, "auc") for each in (bank_a, bank_b, bank_c)] == ["alone", "personalised", None]
    bank_a["own"] = {"alone": {"rmse": 3.0}, "federated": {"rmse": 2.5}, "personalised": {"rmse": 2.0}}
    assert best_at_home(bank_a, "rmse") == "personalised"


def test_where_tuning_changes_nothing_it_is_not_called_better(summary: Summary):
    for each in summary["institutions"][:2]:
        each["own"]["personalised"] = each["own"]["federated"]
    assert best_at_home(summary["institutions"][1], "auc") == "federated"
    assert "better there than untuned at 0 of 2, and better than the own model at 1;" in findings(summary)[2]


def test_a_summary_of_before_there_was_tuning_is_read_as_ever(summary: Summary):
    for each in summary["institutions"]:
        del each["own"]["personalised"]
    assert [best_at_home(each, "auc") for each in summary["institutions"]] == ["alone", "federated", None]
    assert not [sentence for sentence in findings(summary) if "Personalised" in sentence]


def test_a_fixed_threshold_is_stated_as_such():
    fixed = spec(BINARY.replace("base_rate = 0.175", "threshold = 0.4"))
    assert threshold_rule(fixed) == "a row is called positive from a score of 0.4"


def test_the_final_table_shows_every_model_and_states_the_threshold(summary: Summary):
    console = Console(file=io.StringIO(), width=80)
    console.print(final_table(summary))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for fact in ("federated", "pooled", "bank-a alone", "0.610", "0.720", "0.750", "beats 1 of 2", "17.5%", "0.657", "own alone"):
        assert fact in text
    assert max(map(len, text.splitlines())) <= 80
