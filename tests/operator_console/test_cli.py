"""The command `fedqueue` as a shell sees it: exit codes, standard output, standard error, and how soon it starts."""

import subprocess
import sys
from pathlib import Path

import pytest

FEDQUEUE = str(Path(sys.executable).with_name("fedqueue"))
HEAVY = ("matplotlib", "opacus", "pyarrow", "scipy", "sklearn", "torch")


def fedqueue(*words, folder):
    return subprocess.run([FEDQUEUE, *words], capture_output=True, text=True, cwd=folder, timeout=60, check=False)


def test_help_names_every_command_and_needs_nothing_heavy(tmp_path):
    program = f"import sys, operator_console.cli; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    imported = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert imported.stdout.strip() == "[]"
    text = fedqueue("--help", folder=tmp_path).stdout
    commands = ["init", "demo", "status", "report", "stop", "pause", "resume", "doctor", "broker", "institution"]
    commands += ["dead-letters", "lineage", "replay", "model"]
    assert [name for name in commands if f"  {name} " not in text] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["demo", "--epsilon", "-1"], "'-1' is neither a positive number nor none"),
        (["demo", "--updates", "0"], "Invalid value for '--updates'"),
        (["demo", "--institutions", "many"], "Invalid value for '--institutions'"),
        (["init", "--task", "digits", "--institution", "a", "--max-wait-seconds", "0"], "0 is not a positive number"),
        (["init", "--task", "digits", "--institution", "a", "--institution", "a"], "broker.json does not exist"),
        (["init", "--task", "digits", "--institution", "a", "--stop-at", "accuracy"], "is not a figure and its value"),
        (["init", "--task", "digits", "--institution", "a", "--stop-at", "acuracy=0.9"], "did you mean accuracy?"),
        (
            ["init", "--task", "digits", "--institution", "a", "--stop-at", "auc=0.9", "--metric", "f1"],
            "a run goes by one figure",
        ),
        (["init", "--task", "digits", "--institution", "a", "--in-a-row", "3"], "it needs --stop-at"),
        (["init", "--task", "digits", "--institution", "a", "--server-adam", "--server-momentum", "0.9"], "excludes"),
        (["init", "--task", "digits", "--institution", "a", "--rule", "fedavg"], "Invalid value for '--rule'"),
        (["model", "export", "--best", "--newest"], "--best, --newest and --version exclude each other"),
        (["report", "nowhere"], "nowhere/summary.json"),
        (["status"], "broker.json cannot be read"),
        (["replay"], "broker.json cannot be read"),
        (["lineage", "verify"], "broker.json cannot be read"),
        (["dead-letters", "list"], "broker.json cannot be read"),
        (["init", "--task", "digits", "--institution", "a", "--journal", "much"], "'much' is not a size such as 512MiB"),
    ],
)
def test_a_wrong_value_ends_with_code_2_and_a_sentence(words, sentence, tmp_path):
    ended = fedqueue(*words, folder=tmp_path)
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_quiet_demo_says_why_it_failed_on_standard_error_only(tmp_path):
    ended = fedqueue("demo", "--task", "no-such-task", "--quiet", "--out", "run", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "'no-such-task'" in ended.stderr
    assert "sba-loans" in ended.stderr


def test_the_many_options_of_init_stand_under_headings(tmp_path):
    text = fedqueue("init", "--help", folder=tmp_path).stdout
    headings = [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == [
        "Options",
        "Privacy, and what an institution gives",
        "How versions are made",
        "Measuring, and what ends the run, whichever comes first",
        "The network, and the broker's disk",
    ]
    measuring = text[text.index("Measuring") : text.index("The network")]
    for option in ("held-out", "metric", "stop-at", "in-a-row", "patience", "versions", "wall-time", "stop-after-updates"):
        assert f"--{option} " in measuring
