"""The part of the documentation site that is written from the code. `make docs` itself fails at the first warning."""

import importlib.util
import re
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from aggregator_worker.settings import AggregatorSettings
from broker_config.connection import ConnectionSettings
from client_worker.settings import ClientSettings
from operator_console.cli import app as operator_app
from shared import errors

DOCS = Path(__file__).parent.parent / "docs"
_SPEC = importlib.util.spec_from_file_location("site_from_code", DOCS / "site_from_code.py")
assert _SPEC is not None
assert _SPEC.loader is not None
site = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(site)


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """The table below a heading, by its first column."""
    body = text.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    lines = [cells(line) for line in body.splitlines() if line.startswith("| `")]
    return {first.strip("`"): rest for first, *rest in lines}


def cells(line: str) -> list[str]:
    return line.removeprefix("| ").removesuffix(" |").split(" | ")


def test_the_reference_has_every_command_with_each_of_its_options() -> None:
    told, command = site.commands(), typer.main.get_command(operator_app)
    assert isinstance(command, TyperGroup)

    for name, inner in command.commands.items():
        own = rows(told, f"### fedqueue {name}")
        options = {option for each in inner.params for option in each.opts if option.startswith("--")}
        assert options - {"--help"} <= {first.split()[0].rstrip(",") for first in own} | {"--help"}, name
    assert rows(told, "## fedqueue-client")["--config <path>"] == ["TOML settings; every value also as FEDQUEUE_SECTION__KEY."]


def test_the_reference_tells_a_setting_s_type_limits_default_and_meaning() -> None:
    told = site.settings(ClientSettings)

    assert rows(told, "### [broker]")["heartbeat_seconds"] == [
        "whole number, from 2, up to 600",
        "`30`",
        "A silent link is noticed after this and five seconds more.",
    ]
    assert rows(told, "### [policy]")["mechanisms"][0] == "list: one of `dp-sgd`, `update-gaussian`"
    assert rows(told, "### [policy.reports]")["allowed"][1] == "`false`"


@pytest.mark.parametrize("settings", [AggregatorSettings, ClientSettings])
def test_every_setting_has_a_meaning(settings: type[AggregatorSettings | ClientSettings]) -> None:
    told = [cells(line) for line in site.settings(settings).splitlines() if line.startswith("| `")]

    assert {line[0].strip("`") for line in told} > set(ConnectionSettings.model_fields)
    assert [line[0] for line in told if len(line) < 4 or not line[3].strip()] == []


def test_the_reference_has_every_error_with_its_exit_code() -> None:
    told = {name: (parent, code) for name, (parent, code, _) in rows(f"x\n{site.errors()}", "x").items()}

    assert set(told) == {name for name in vars(errors) if name.endswith("Error")}
    assert told["DataError"] == ("`SettingsError`", "2")
    assert told["CheckpointError"] == ("`FederationError`", "4")


def test_the_side_bar_has_the_pages_of_each_part_of_the_index() -> None:
    told = site.contents(
        "# x\n\n[not here](a.md)\n\n## How to\n\n- [One](one.md): 1\n- [Two](reference/two.md)\n\n## Reference\n\n[T](t.md)\n"
    )

    assert told == (
        "\n```{toctree}\n:hidden:\n:caption: How to\n\none\nreference/two\n```\n"
        "\n```{toctree}\n:hidden:\n:caption: Reference\n\nt\n```\n"
    )


def test_a_page_that_asks_for_a_part_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError, match="comands"):
        site.filled("<!-- from code: comands -->")


def test_the_index_names_every_page() -> None:
    named = {(DOCS / page).resolve() for page in re.findall(r"\]\(([^)#]+\.md)\)", (DOCS / "index.md").read_text())}

    assert {page.resolve() for page in DOCS.rglob("*.md")} - named == {DOCS / "index.md"}
