"""All commands of the three programs, one after the other: their help, examples, options' names, and what they suggest."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup
from typer.testing import CliRunner

from aggregator_worker.cli import app as aggregator_app
from client_worker.cli import app as client_app
from operator_console.cli import app as operator_app
from operator_console.command_examples import EXAMPLES
from operator_console.federation_folder import Facts, FederationFolder, InstitutionFacts
from shared.errors import SettingsError
from shared.tasks.spec import parse_task
from tests.operator_console.test_summary import BINARY

PROGRAMS = {
    "fedqueue": typer.main.get_command(operator_app),
    "fedqueue-client": typer.main.get_command(client_app),
    "fedqueue-aggregator": typer.main.get_command(aggregator_app),
}
MEANINGS = {
    "--dir": {"folder", "file"},
    "--json": {"as_json"},
    "--out": {"out"},
    "--yes": {"yes"},
    "--config": {"config"},
    "--version": {"show_version", "version"},
    "--since": {"since"},
    "--institution": {"institution", "institutions"},
    "--without": {"without"},
    "--reason": {"reason"},
}
"""Options that several commands have, and the parameters that they may fill: one name has one meaning."""


def commands(words: list[str], command: TyperCommand | TyperGroup) -> Iterator[tuple[list[str], TyperCommand]]:
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            yield from commands([*words, name], inner)
    else:
        yield words, command


ALL = [(" ".join(words), command) for name, program in PROGRAMS.items() for words, command in commands([name], program)]


def examples_of(epilog: str | None) -> list[str]:
    lines = (epilog or "").splitlines()
    return [line.strip() for line in lines if line.startswith("  ")]


def parse(line: str) -> None:
    """Has typer read an example's words, up to the call itself. Raises its error for what would not be taken."""
    for part in line.split(" | "):
        words = shlex.split(part)
        if words[0] in PROGRAMS:
            parse_words(PROGRAMS[words[0]], words[1:])


def parse_words(command, words: list[str]) -> None:
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{words[0]} is no command of {command.name}"
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words)).close()


@pytest.mark.parametrize(("words", "command"), ALL, ids=[words for words, _ in ALL])
def test_every_command_says_what_it_does_and_shows_examples_that_can_be_typed(words: str, command: TyperCommand) -> None:
    assert command.help
    assert command.help[0].isupper()
    assert command.help.splitlines()[0].endswith((".", ":"))
    examples = examples_of(command.epilog)
    assert examples, f"{words} has no example: add one to operator_console/command_examples.py"
    assert any(f"{words} ".startswith(words) and words in f"{example} " for example in examples)
    for example in examples:
        parse(example)


def test_the_examples_of_a_group_that_is_a_command_itself_can_be_typed() -> None:
    examples = examples_of(PROGRAMS["fedqueue-client"].epilog)
    assert len(examples) >= 2
    for example in examples:
        parse(example)


def test_an_example_that_could_not_be_typed_is_found() -> None:
    for wrong in ("fedqueue status --wach", "fedqueue model --version minus", "fedqueue institution ad east", "fedqueue restore"):
        with pytest.raises((typer._click.exceptions.UsageError, AssertionError)):
            parse(wrong)


def test_no_example_is_of_a_command_that_is_gone() -> None:
    assert EXAMPLES.keys() <= {words.removeprefix("fedqueue ") for words, _ in ALL if words.startswith("fedqueue ")}


def test_an_option_means_the_same_in_every_command() -> None:
    wrong = [
        f"{words} {option} fills {param.name}"
        for words, command in ALL
        for param in command.params
        for option in param.opts
        if option in MEANINGS and param.name not in MEANINGS[option]
    ]
    assert wrong == []
    folders = {
        (words, option) for words, command in ALL for param in command.params for option in param.opts if param.name == "folder"
    }
    assert {option for _, option in folders} <= {"--dir", "folder"}
    assert {words for words, option in folders if option == "folder"} <= {"fedqueue report"}


def test_every_option_is_explained_and_spelled_with_hyphens() -> None:
    options = [(words, param) for words, command in ALL for param in command.params if param.opts[0].startswith("--")]
    assert [f"{words} {param.opts}" for words, param in options if not param.help] == []
    assert [
        f"{words} {param.opts}" for words, param in options if "_" in param.opts[0] or param.opts[0] != param.opts[0].lower()
    ] == []


def test_the_commands_stand_under_headings() -> None:
    program = PROGRAMS["fedqueue"]
    page = program.get_help(program.make_context("fedqueue", ["--help"], resilient_parsing=True))
    headings = [line.rstrip(":") for line in page.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[0] == "Options"
    assert "Commands" not in headings, "a command has no heading: give it one in operator_console/cli.py"
    assert {"Found a federation", "Operate it", "Who takes part", "Try it on this machine"} <= set(headings)
    assert page.index("Operate it:") < page.index("  status ") < page.index("The model, and what it is made of:")


def test_every_program_says_its_version(tmp_path: Path) -> None:
    for program in PROGRAMS:
        ended = run(program, "--version", folder=tmp_path)
        assert (ended.returncode, ended.stdout.split()[0], ended.stderr) == (0, "fedqueue", "")


def run(program: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name(program)), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60, check=False)


APPS = {"fedqueue": operator_app, "fedqueue-client": client_app, "fedqueue-aggregator": aggregator_app}


def completed(program: str, line: str) -> list[str]:
    """What bash would offer at the end of a line, in the folder that this process is in."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    variables = {
        f"_{program.upper().replace('-', '_')}_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    return CliRunner().invoke(APPS[program], [], env=variables, prog_name=program).stdout.split()


def test_a_shell_completes_commands_options_institutions_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [InstitutionFacts(id=each, title=each) for each in ("north", "northeast", "south")]
    federation = FederationFolder(tmp_path / "federation")
    federation.path.mkdir()
    federation.keep(Facts(run_id="ab" * 8, task="toy", title="Toy", institutions=names))
    (federation.path / "last-status.json").write_text(json.dumps({"version": 41}))

    assert completed("fedqueue", "fedqueue inst") == ["institution"]
    assert completed("fedqueue", "fedqueue status --wa") == ["--watch"]
    assert completed("fedqueue", "fedqueue replay --without n") == ["north", "northeast"]
    assert completed("fedqueue", "fedqueue institution quarantine s") == ["south"]
    assert completed("fedqueue", "fedqueue lineage show 4") == ["41", "40"]
    assert completed("fedqueue", "fedqueue model export --version 41") == ["41"]
    assert completed("fedqueue", "fedqueue replay --dir nowhere --without n") == []
    assert completed("fedqueue-client", "fedqueue-client pers") == ["personalise"]
    assert completed("fedqueue-aggregator", "fedqueue-aggregator --ch") == ["--check"]


def test_the_script_that_a_shell_is_given_is_one_that_bash_takes(tmp_path: Path) -> None:
    bash = 'eval "$($0 --show-completion bash)" && complete -p fedqueue-aggregator'
    program = str(Path(sys.executable).with_name("fedqueue-aggregator"))
    taken = subprocess.run(["bash", "-c", bash, program], capture_output=True, text=True, timeout=60, check=False)
    assert (taken.returncode, taken.stderr) == (0, "")
    assert taken.stdout.startswith("complete -o default -F _fedqueue_aggregator_completion")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["fedqueue", "staus"], "Did you mean 'status'"),
        (["fedqueue", "status", "--wach"], "--watch"),
        (["fedqueue-aggregator", "--confg", "x"], "--config"),
        (
            ["fedqueue-aggregator", "--check", "--config", "aggregator.toml"],
            "unknown key 'stat_folder'; did you mean state_folder?",
        ),
        (["fedqueue-aggregator", "--check", "--config", "aggregator.toml"], "unknown key 'broker.usr'; did you mean user?"),
        (["fedqueue", "demo", "--task", "heart-diseases", "--out", "run"], "did you mean heart-disease? There are"),
        (["fedqueue", "init", "--task", "sba-loan", "--institution", "a"], "did you mean sba-loans? There are"),
    ],
)
def test_a_misspelled_word_is_told_with_the_one_that_was_meant(
    words: list[str], meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aggregator.toml").write_text('stat_folder = "x"\n[broker]\nusr = "a"\n')
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(APPS[words[0]], words[1:])
    assert ended.exit_code == 2 or isinstance(ended.exception, SettingsError)
    assert meant in ended.stderr + str(ended.exception)


def test_a_stranger_is_told_with_whom_was_meant_and_who_there_is(tmp_path: Path) -> None:
    federation = FederationFolder(tmp_path)
    names = [InstitutionFacts(id=each, title=each) for each in ("north", "south")]
    federation.keep(
        Facts(
            run_id="ab" * 8, task="toy", title="Toy", institutions=[*names, InstitutionFacts(id="gone", title="", removed=True)]
        )
    )
    assert str(federation.stranger("nort")) == "nort is not a member: did you mean north? There are north, south"
    assert str(federation.stranger("xyz")) == "xyz is not a member: there are north, south"
    federation.demand_known("gone")


def test_a_misspelled_key_of_a_task_is_told_with_the_one_that_was_meant_wherever_it_stands() -> None:
    text = (
        BINARY.replace("minimum", "minimun", 1)
        .replace("[model]", "[model]\nhiden = [3]", 1)
        .replace("[label]", "[label]\ncolum = 1")
    )
    with pytest.raises(SettingsError) as told:
        parse_task(text, source="task.toml")
    for sentence in ("'numeric.0.minimun'; did you mean minimum?", "'label.colum'; did you mean column?"):
        assert f"task.toml: unknown key {sentence}" in str(told.value)
    assert "unknown key 'model.hiden'; did you mean hidden?" in str(told.value)
