"""What the pages say is there: files, headings, commands, options, settings, tests."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from aggregator_worker.cli import app as aggregator_app
from aggregator_worker.settings import AggregatorSettings
from client_worker.cli import app as client_app
from client_worker.settings import ClientSettings
from operator_console.cli import app as operator_app
from shared.settings import load
from shared.tasks.spec import parse_task

PROJECT = Path(__file__).parent.parent
PAGES = [
    PROJECT / "README.md",
    PROJECT / "CHANGELOG.md",
    *sorted((PROJECT / "docs").rglob("*.md")),
    *PROJECT.glob("builtin_tasks/*/README.md"),
    *PROJECT.glob("examples/*/README.md"),
]
PROGRAMS: dict[str, TyperCommand | TyperGroup] = {
    "fedqueue": typer.main.get_command(operator_app),
    "fedqueue-aggregator": typer.main.get_command(aggregator_app),
    "fedqueue-client": typer.main.get_command(client_app),
}
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
MAKE_TARGETS = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(PROJECT))


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if not target.startswith(("http://", "https://", "mailto:")):
            yield target


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text()) if language in languages]


def command_lines(page: Path) -> Iterator[list[str]]:
    """Every call of one of our programs in a code block or between backticks, as words."""
    text = page.read_text()
    spoken = [*re.findall(r"`([^`\n]+)`", FENCE.sub("", text)), *re.findall(r"^    (\S.*)$", text, re.MULTILINE)]
    for line in [*spoken, *(line for _, body in FENCE.findall(text) for line in whole_lines(body))]:
        yield from calls(line)


def whole_lines(body: str) -> list[str]:
    """Of a block; one that goes on after a backslash is one."""
    return re.sub(r"\\\n\s*", "", body).splitlines()


def calls(line: str) -> Iterator[list[str]]:
    for part in re.split(r"&&|\|\||; | \| (?=[a-z])", line):
        words = part.strip().removeprefix("$ ").removeprefix("ExecStart=").split()
        if words and Path(words[0]).name in PROGRAMS:
            yield [Path(words[0]).name, *shlex.split(" ".join(words[1:]), comments=True)]


def demand_known(words: list[str]) -> None:
    """Fails for a command or an option that the program does not have."""
    command, rest = PROGRAMS[words[0]], words[1:]
    while isinstance(command, TyperGroup) and rest and not (rest[0].isupper() or rest[0].startswith(("-", "[", "..."))):
        names = [name for name in rest[0].split("|") if name]
        unknown = [name for name in names if name not in command.commands]
        assert not unknown, f"{words} names {unknown}; {command.name} has {sorted(command.commands)}"
        command, rest = command.commands[names[0]], rest[1:]
        if len(names) > 1 or (rest and rest[0] == "|"):
            return
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    given = {word.partition("=")[0] for word in rest if word.startswith("--")}
    assert given <= known, f"{words}: {sorted(given - known)} is no option of it; it has {sorted(known)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)} links to {target}, which is not there"
        assert not anchor or anchor in anchors(file), f"{name_of(page)} links to {target}, and there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_in_the_pages_exists_with_its_options(page: Path) -> None:
    for words in command_lines(page):
        demand_known(words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_console_block_is_taken_by_its_program(page: Path) -> None:
    lines = [line for body in blocks(page, "console") for line in whole_lines(body) if line.startswith("$ ")]
    for program, *words in (words for line in lines for words in calls(line)):
        parse(program, PROGRAMS[program], words)


def parse(name: str, command: TyperCommand | TyperGroup, words: list[str]) -> None:
    """The program's own parser reads the words, down to the last command; nothing runs. Raises TyperException as it does."""
    context = command.make_context(name, [word for word in words if word != "..."])
    if isinstance(command, TyperGroup) and (rest := [*context._protected_args, *context.args]):
        parse(f"{name} {rest[0]}", command.commands[rest[0]], rest[1:])


@pytest.mark.parametrize("words", [["init", "--seed", "many"], ["broker", "down"], ["replay", "--version"], ["predict"]])
def test_a_command_that_its_program_does_not_take_is_found(words: list[str]) -> None:
    with pytest.raises((KeyError, TyperException)):
        parse("fedqueue", PROGRAMS["fedqueue"], words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_in_the_pages_exists(page: Path) -> None:
    for target in re.findall(r"(?:`|\$ )make (?:-C \S+ )?([a-z-]+)", page.read_text()):
        assert target in MAKE_TARGETS, f"{name_of(page)} says make {target}"


@pytest.mark.parametrize(
    "words", [["fedqueue", "brocker", "up"], ["fedqueue", "init", "--tusk"], ["fedqueue-client", "--configuration"]]
)
def test_a_command_that_does_not_exist_is_found(words: list[str]) -> None:
    with pytest.raises(AssertionError):
        demand_known(words)


def test_the_tutorial_calls_each_of_the_three_programs() -> None:
    assert {words[0] for words in command_lines(PROJECT / "docs" / "tutorial.md")} == set(PROGRAMS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_whole_task_or_settings_file_in_the_pages_is_valid(page: Path) -> None:
    for text in blocks(page, "toml"):
        keys = tomllib.loads(text).keys()
        if {"kind", "label"} <= keys:
            parse_task(text, source=name_of(page))
        elif "incarnation" in keys:
            load(ClientSettings, text, path=PROJECT / "client.toml")
        elif "members_file" in keys:
            load(AggregatorSettings, text, path=PROJECT / "aggregator.toml")


def test_the_page_of_tasks_has_one_of_each_kind() -> None:
    files = [tomllib.loads(text) for text in blocks(PROJECT / "docs" / "tasks.md", "toml")]

    assert {"binary", "regression"} <= {file["kind"] for file in files if "label" in file}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_place_on_somebodys_machine(page: Path) -> None:
    found = re.findall(r"(?:/home/|/root/|/Users/|/work/|/tmp/|[A-Z]:\\)\S*", page.read_text())

    assert found == []


def test_every_test_that_the_promises_name_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (PROJECT / "docs" / "promises.md").read_text())
    missing = [f"{file}::{test}" for file, test in named if not _has_test(PROJECT / file, test)]

    assert len(named) > 30
    assert missing == []


def test_every_promise_has_a_test() -> None:
    page = (PROJECT / "docs" / "promises.md").read_text()
    sections = dict(re.findall(r"^## (P\d)\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL))

    assert list(sections) == [f"P{number}" for number in range(1, 10)]
    assert all("::test_" in body for body in sections.values())


def _has_test(file: Path, test: str) -> bool:
    return file.exists() and re.search(rf"^def {test}\(", file.read_text(), re.MULTILINE) is not None
