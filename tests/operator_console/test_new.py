"""`fedqueue new`: what it writes is a project that works, and what it reads out of a CSV file is told."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tomllib
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from operator_console.cli import app
from operator_console.column_guess import guess, rounded_outwards
from operator_console.made_up_rows import invoices
from shared.errors import DataError, SettingsError
from shared.tasks.spec import parse_task


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(*words):
    return CliRunner().invoke(app, ["new", *map(str, words)], catch_exceptions=False)


def own_csv(rows):
    """Of customers: a balance, a rating, a region, a flag that is mostly 0, and columns that say nothing."""
    lines = ["customer_id,number,balance,rating,region,active,note,same,churned"]
    for row in range(rows):
        balance, rating, region = 17 * row % 1900, row % 5 + 1, ("north", "south", "")[row % 3]
        churned = "yes" if rating < 3 and row % 7 else "no"
        lines.append(f"c{row},{row},{balance},{rating},{region},{int(row % 9 == 0)},text {row},x,{churned}")
    return "\n".join(lines) + "\n"


def test_rows_are_made_up_alike_and_those_of_another_seed_differ():
    assert invoices(50, 3) == invoices(50, 3)
    assert invoices(50, 3) != invoices(50, 4)
    assert list(invoices(1, 3)[0]) == ["invoice_id", "amount", "age_days", "orders", "sector", "late"]


def test_a_project_has_a_valid_task_rows_for_each_institution_and_what_starts_them(here):
    said = new("my-federation", "--institutions", "2").output
    folder = here / "my-federation"
    task = parse_task((folder / "task.toml").read_text(), source="task.toml")
    assert (task.name, task.kind, task.model.type) == ("my-federation", "binary", "logistic")
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    written = {"README.md", "task.toml", "scenario.toml", "workers.sh", "compose.yml", ".gitignore", "held_out.csv"}
    assert files == written | {"data/north/training.csv", "data/south/training.csv"}
    assert "/federation/\n" in (folder / ".gitignore").read_text()
    assert stat.S_IMODE((folder / "workers.sh").stat().st_mode) & 0o100
    services = yaml.safe_load((folder / "compose.yml").read_text())["services"]
    assert set(services) == {"aggregator", "north", "south"}
    assert "the column invoice_id is left out" in said
    assert "fedqueue simulate scenario.toml" in said


@pytest.mark.parametrize("name", ["My-Federation", "1st", "a/b", "", "-x", "x" * 64])
def test_a_name_that_is_no_name_is_refused(here, name):
    with pytest.raises(SettingsError, match="cannot be the name"):
        new("--", name)
    assert list(here.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_alone(here):
    (here / "mine").mkdir()
    (here / "mine" / "task.toml").write_text("mine")
    with pytest.raises(SettingsError, match="mine is there already and not empty; choose another name"):
        new("mine")
    assert (here / "mine" / "task.toml").read_text() == "mine"
    assert len(list((here / "mine").iterdir())) == 1


def test_a_file_and_its_label_go_together(here):
    assert "--from and --label go together" in new("mine", "--label", "churned").output
    assert not (here / "mine").exists()


def test_the_columns_of_a_csv_file_become_a_task_and_its_rows_are_divided(here):
    (here / "customers.csv").write_text(own_csv(1000))
    said = new("churn", "--from", "customers.csv", "--label", "churned", "--institutions", "4").output
    values = tomllib.loads((here / "churn" / "task.toml").read_text())
    assert values["label"] == {"column": "churned", "positive": ["yes"], "negative": ["no"], "base_rate": 0.34}
    numeric = {each["columns"][0]: each for each in values["numeric"]}
    assert set(numeric) == {"balance", "rating", "active"}
    assert (numeric["balance"]["minimum"], numeric["balance"]["maximum"]) == (0, 2000)
    assert (numeric["active"]["minimum"], numeric["active"]["maximum"]) == (-1, 1)
    assert [(each["columns"], each["categories"]) for each in values["categorical"]] == [(["region"], ["north", "south"])]
    assert "the column customer_id is left out: its name says that it is an id" in said
    assert "the column number is left out: it counts the rows" in said
    assert "the column note is left out: it is text with 1000 different values" in said
    assert "the column same is left out: it has one value only" in said
    assert "replace them" in said
    rows = {}
    for file in sorted((here / "churn").rglob("*.csv")):
        header, *rows[str(file.relative_to(here / "churn"))] = file.read_text().splitlines()
        assert header.startswith("customer_id,number,balance")
    assert {name: len(lines) for name, lines in rows.items()} == {
        "held_out.csv": 200,
        **{f"data/{place}/training.csv": 200 for place in ("north", "south", "east", "west")},
    }
    assert sorted(line for lines in rows.values() for line in lines) == sorted(own_csv(1000).splitlines()[1:])
    assert "/data/\n/held_out.csv\n" in (here / "churn" / ".gitignore").read_text()


def column(*cells):
    return [str(each) for each in cells]


def test_each_kind_of_label_is_known_by_its_values():
    feature = {"x": column(*range(0, 60, 2))}
    numbers = guess({**feature, "y": column(*range(30))}, "y", source="f").label
    assert (numbers.kind, numbers.minimum, numbers.maximum) == ("regression", 0, 30)
    classes = guess({**feature, "y": ["a", "b", "c"] * 10}, "y", source="f").label
    assert (classes.kind, classes.classes) == ("multiclass", ("a", "b", "c"))
    rarer = guess({**feature, "y": ["bad", "good", "good"] * 10}, "y", source="f").label
    assert (rarer.kind, rarer.positive, rarer.negative, rarer.base_rate) == ("binary", "bad", "good", 0.33)
    coded = guess({**feature, "y": ["1.0", "1", "0"] * 10}, "y", source="f").label
    assert (coded.positive, coded.negative) == ("1", "0")


def test_skewed_amounts_are_scaled_by_their_logarithm_and_empty_cells_are_an_input():
    amounts = guess({"amount": ["", *column(*([5] * 20)), "9000"], "y": ["a", "b"] * 11}, "y", source="f").numeric[0]
    assert (amounts.log, amounts.has_missing, amounts.minimum, amounts.maximum) == (True, True, 5, 9000)


def test_a_repeated_id_may_be_a_person_and_that_is_told():
    draft = guess({"patient_id": ["a", "a", "b", "c"], "x": column(1, 4, 9, 2), "y": ["p", "q"] * 2}, "y", source="f")
    assert "set person = 'patient_id'" in draft.left_out["patient_id"]


def test_what_no_task_can_be_made_of_is_refused(here):
    with pytest.raises(DataError, match="no column is left to learn from"):
        guess({"name": [f"n{each}" for each in range(30)], "y": ["a", "b"] * 15}, "y", source="f")
    with pytest.raises(DataError, match="the label column 'y' has one value only"):
        guess({"x": column(*range(0, 60, 2)), "y": ["a"] * 30}, "y", source="f")
    with pytest.raises(DataError, match="'y' is text with 30 different values"):
        guess({"x": column(*range(0, 60, 2)), "y": [f"n{each}" for each in range(30)]}, "y", source="f")
    (here / "few.csv").write_text(own_csv(20))
    with pytest.raises(DataError, match="20 rows with a label are too few for 3 institutions"):
        new("few", "--from", "few.csv", "--label", "churned")
    with pytest.raises(DataError, match="there is no column 'left' to predict; the file has customer_id"):
        new("few", "--from", "few.csv", "--label", "left")


@pytest.mark.parametrize(
    ("low", "high", "log", "span"),
    [
        (0, 1893, False, (0, 2000)),
        (2006, 2014, False, (2006, 2014)),
        (0.034, 0.97, False, (0, 1)),
        (-12, 31, False, (-15, 35)),
        (1, 5, False, (1, 5)),
        (5, 9000, True, (5, 9000)),
        (1234, 987654, True, (1000, 1000000)),
        (0, 47, True, (0, 50)),
    ],
)
def test_ranges_are_rounded_outwards_by_their_width(low, high, log, span):
    """A year is known to the year; of an amount that is scaled by its logarithm each end counts by its own size."""
    assert rounded_outwards(low, high, log=log) == span


@pytest.mark.parametrize("kind", ["tabular", "torch"])
def test_the_simulator_learns_from_a_project_as_it_is(here, monkeypatch, kind):
    new(f"a-{kind}", "--task", kind)
    monkeypatch.chdir(here / f"a-{kind}")
    monkeypatch.syspath_prepend(str(here / f"a-{kind}"))
    said = CliRunner().invoke(app, ["simulate", "scenario.toml", "--json"], catch_exceptions=False)
    found = {each["name"]: each["final"]["metrics"]["auc"] for each in json.loads(said.stdout)["plans"]}
    assert found["epsilon 3"] > 0.75
    assert found["no noise"] > 0.8


def commands(readme):
    """What the README tells to type, in its order."""
    blocks = re.findall(r"^```console\n(.*?)^```$", readme.read_text(), re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


@pytest.mark.long
@pytest.mark.rabbitmq
@pytest.mark.timeout(420)
@pytest.mark.parametrize("kind", ["tabular", "torch"])  # the tutorial begins with a CSV file of one's own
def test_the_commands_of_the_readme_bring_up_a_federation_and_predict(here, soon, kind, installation):
    """In a clean folder, as they stand there; only the broker and the workers run beside the rest."""
    words = ["--task", "torch"] if kind == "torch" else []
    new("trial", *words)
    folder, done = here / "trial", []
    with ExitStack() as stack:
        shell = Shell(folder, stack)
        for command in commands(folder / "README.md"):
            if command == "export PYTHONPATH=$PWD":
                shell.environment["PYTHONPATH"] = str(folder)
            elif command in ("fedqueue broker up", "sh workers.sh"):
                shell.begin(command)
                assert soon((folder / "federation" / "broker.json").exists, 90)
            elif command == "fedqueue status --watch":
                assert soon(lambda: '"phase": "finished"' in shell.run("fedqueue status --json").stdout, 180), logs(folder)
            else:
                result = shell.run(command)
                assert result.returncode == 0, (command, result.stdout, result.stderr)
                done.append((command, result.stdout))
    assert [each.returncode for each in shell.running] == [0, 0]
    assert all(output.startswith("ok: ") for command, output in done if command.endswith("--check"))
    assert "rows with a label: auc 0." in done[-1][1]
    assert len((folder / "predictions.csv").read_text().splitlines()) == len((folder / "held_out.csv").read_text().splitlines())
    assert "# Model card" in (folder / "model.md").read_text()


class Shell:
    """A person's terminals in a folder; what runs on ends with the stack, by what Ctrl-C sends."""

    def __init__(self, folder, stack):
        without = {name: value for name, value in os.environ.items() if name not in ("AMQP_URL", "MANAGEMENT_URL")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**without, "PATH": path, "OMP_NUM_THREADS": "1"}
        self.running = []
        self._folder, self._stack = folder, stack

    def run(self, command):
        return subprocess.run(
            command, shell=True, cwd=self._folder, env=self.environment, capture_output=True, text=True, timeout=120
        )

    def begin(self, command):
        begun = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"], cwd=self._folder, env=self.environment, stdout=subprocess.DEVNULL
        )
        self._stack.callback(ended, begun)
        self.running.append(begun)


def ended(process):
    """By what Ctrl-C sends."""
    process.send_signal(signal.SIGINT)
    process.wait(60)


def logs(folder):
    return {file.name: file.read_text()[-500:] for file in (folder / "federation" / "logs").iterdir()}
