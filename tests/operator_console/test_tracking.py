"""What experiment trackers are told of a run: step by step, by hand, and without the tools themselves."""

from pathlib import Path

import pytest

from operator_console.federation_folder import Facts, FederationFolder, InstitutionFacts
from operator_console.track_command import track
from operator_console.tracking import steps
from shared.errors import SettingsError
from tests.operator_console.conftest import Finished


def line(version: int, metrics: dict[str, float | None], updates: list[tuple[str, int]], **institutions: dict[str, object]):
    return {
        "version": version,
        "seconds": 2.0 * version,
        "metrics": metrics,
        "updates": [{"institution": who, "staleness": staleness} for who, staleness in updates],
        "not_folded": [{}] * version,
        "institutions": institutions,
    }


def entry(updates: int, weight: float, examples: int | None, epsilon: float | None) -> dict[str, object]:
    return {"updates": updates, "total_weight": weight, "num_examples": examples, "epsilon_spent": epsilon}


def test_each_version_is_a_step_with_shares_of_all_and_figures_that_are_known():
    lines = [
        line(0, {"auc": None}, [], north=entry(0, 0.0, None, None), south=entry(0, 0.0, None, None)),
        line(1, {"auc": 0.5}, [("north", 0), ("north", 2)], north=entry(2, 3.0, 100, 0.25)),
        line(2, {"auc": 0.75, "log_loss": float("inf")}, [("south", 1)], south=entry(1, 1.0, 300, 0.5)),
    ]
    zero, one, two = steps(lines)
    base = {"federation/updates_folded": 0, "federation/updates_not_folded": 0, "federation/seconds": 0.0}
    assert zero == (0, {"updates/north": 0, "updates/south": 0, **base, "federation/version": 0})
    assert one[1]["weight_share/north"] == 1.0
    assert one[1]["staleness/north"] == 1.0
    assert (one[1]["federation/staleness_mean"], one[1]["federation/staleness_max"]) == (1.0, 2.0)
    assert "epsilon/south" not in one[1]
    assert two == (
        2,
        {
            "held_out/auc": 0.75,
            "updates/north": 2,
            "weight_share/north": 0.75,
            "data_share/north": 0.25,
            "epsilon/north": 0.25,
            "updates/south": 1,
            "weight_share/south": 0.25,
            "data_share/south": 0.75,
            "epsilon/south": 0.5,
            "staleness/south": 1.0,
            "federation/staleness_mean": 1.0,
            "federation/staleness_max": 1.0,
            "federation/updates_folded": 1,
            "federation/updates_not_folded": 2,
            "federation/seconds": 4.0,
            "federation/version": 2,
        },
    )


def test_the_last_metric_of_a_step_is_the_one_that_says_it_is_whole(finished: Finished):
    told = list(steps(finished.history.lines()))
    assert [step for step, _ in told] == list(range(len(told)))
    assert {list(metrics)[-1] for _, metrics in told} == {"federation/version"}
    last = told[-1][1]
    assert sum(last[f"weight_share/bank-{each}"] for each in "abc") == pytest.approx(1.0)
    assert last["data_share/bank-c"] == 0.5
    assert last["epsilon/bank-a"] == pytest.approx(0.15 * last["updates/bank-a"], abs=0.31)  # one may be charged and not folded


@pytest.mark.parametrize(("tool", "extra"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow"), ("wandb", "wandb")])
def test_a_tool_that_is_not_installed_is_told_with_how_to_install_it(tool: str, extra: str, tmp_path: Path):
    a_finished_run(tmp_path)
    with pytest.raises(SettingsError, match=rf"is not installed .*: pip install 'fedqueue\[{extra}\]'") as told:
        track(to=tool, folder=tmp_path, out=tmp_path / "out")  # type: ignore[arg-type]
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def a_finished_run(folder: Path) -> None:
    FederationFolder(folder).keep(
        Facts(run_id="ab" * 8, task="toy", title="Toy", institutions=[InstitutionFacts(id="bank-a", title="A")])
    )
    (folder / "lineage.jsonl").write_text("")
