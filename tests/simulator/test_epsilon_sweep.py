from pathlib import Path

import pytest

from operator_console.demo_data import prepare
from shared.errors import SettingsError
from simulator.epsilon_sweep import members_with_one_slow, read_folder, sweep
from simulator.federation import Options


def test_a_demonstrations_folder_is_read_back(tmp_path: Path) -> None:
    prepare("heart-disease", institutions=3, seed=0, folder=tmp_path)

    spec, trainings, held_out = read_folder(tmp_path)

    assert spec.name == "heart-disease"
    assert {name: len(rows) for name, rows in trainings.items()} == {"budapest": 193, "cleveland-clinic": 201, "zurich-basel": 81}
    assert len(held_out) == 103 + 100 + 42


def test_a_folder_without_a_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"task\.toml: No such file"):
        read_folder(tmp_path)


def test_a_sweep_has_a_row_for_each_epsilon(tmp_path: Path) -> None:
    prepare("heart-disease", institutions=2, seed=0, folder=tmp_path)
    spec, trainings, held_out = read_folder(tmp_path)
    members = members_with_one_slow(trainings, updates=20, seed=0)

    rows = sweep(spec, members, held_out, Options(updates=2), epsilons=(None, 8.0, 1.0))

    assert [row.epsilon for row in rows] == [None, 8.0, 1.0]
    assert rows[0].noise_multiplier is None
    assert (rows[1].noise_multiplier or 9.0) < (rows[2].noise_multiplier or 0.0)
    assert all(0.5 < (row.metrics["auc"] or 0.0) <= 1.0 for row in rows[:2])


def test_exactly_one_institution_is_ten_times_slower(tmp_path: Path) -> None:
    prepare("heart-disease", institutions=4, seed=0, folder=tmp_path)
    _, trainings, _ = read_folder(tmp_path)

    durations = sorted(member.duration_seconds for member in members_with_one_slow(trainings, updates=20, seed=1))

    assert durations[2] <= 1.1
    assert 9.0 <= durations[3] <= 11.0
