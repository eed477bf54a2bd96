"""docs/tutorial.md, walked: its own commands in a clean folder, with the real programs and a real broker."""

import os
from pathlib import Path

import pytest

from tests.walking import Block, Step, Walk, blocks_of, without_numbers

PROJECT = Path(__file__).parent.parent
PAGE = PROJECT / "docs" / "tutorial.md"
CLONE = "git clone ADDRESS fedqueue"


def of_a_new_reader() -> dict[str, str]:
    """The environment of somebody who has nothing of ours on the path."""
    elsewhere = [place for place in os.environ["PATH"].split(":") if not place.startswith(str(PROJECT))]
    return {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | {"PATH": ":".join(elsewhere)}


def walked(folder: Path, blocks: list[Block]) -> Walk:
    with Walk(folder, of_a_new_reader()) as walk:
        walk.through(blocks)
    return walk


def demand_predictions(project: Path) -> None:
    """Fails unless the walk left a model's card, and a prediction for each held-out row."""
    predictions, rows = ((project / name).read_text().splitlines() for name in ("predictions.csv", "held_out.csv"))
    assert len(predictions) == len(rows)
    assert (project / "model.md").read_text().startswith("# ")


def tell(walk: Walk) -> None:
    """For whoever looks with `pytest -s`: what each command took, and all of them."""
    print("\n".join(f"{seconds:6.1f} s  {command}" for command, seconds in walk.seconds.items()))
    print(f"{sum(walk.seconds.values()):6.1f} s  in all")


@pytest.mark.skipif((PROJECT / ".git").exists(), reason="the walk that begins with a clone does all of this and more")
@pytest.mark.long
@pytest.mark.rabbitmq
@pytest.mark.timeout(600)
def test_the_tutorial_leads_from_the_installed_clone_to_predictions(tmp_path: Path) -> None:
    (tmp_path / "fedqueue").symlink_to(PROJECT)
    install, *rest = blocks_of(PAGE.read_text())
    assert install.steps[0].command == CLONE
    walk = walked(tmp_path, [Block(install.steps[1:]), *rest])

    tell(walk)
    demand_predictions(tmp_path / "first")


@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="there is nothing to clone")
@pytest.mark.long
@pytest.mark.rabbitmq
@pytest.mark.timeout(1200)
def test_the_tutorial_leads_from_nothing_but_an_address_to_a_model(tmp_path: Path) -> None:
    install, *rest = blocks_of(PAGE.read_text())
    clone = Step(CLONE.replace("ADDRESS", f"file://{PROJECT}"), ())
    walk = walked(tmp_path, [Block((clone, *install.steps[1:])), *rest])

    tell(walk)
    demand_predictions(tmp_path / "first")


def test_what_a_page_shows_is_read_with_its_command_and_its_terminal() -> None:
    first = "```console\n$ one \\\n    --two\nsaid 12 words\n$ three\n```\n"
    second = "<!-- another terminal, until: ready -->\n\n```console\n$ stay\n```\n"

    assert blocks_of(f"# x\n\n{first}\ntext\n\n{second}") == [
        Block((Step("one --two", ("said 12 words",)), Step("three", ()))),
        Block((Step("stay", ()),), elsewhere=True, until="ready"),
    ]
    assert without_numbers("ok: run 5918edb3e2d3ff54, version 3") == without_numbers("ok: run 0123456789abcdef, version 11")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("$ false\n", "ended with 1"),
        ("$ echo seven\neight\n", "the page shows: eight"),
        ("$ echo 1; echo 2\nthree\n", "the page shows: three"),
    ],
)
def test_a_page_that_does_not_tell_the_truth_is_found(tmp_path: Path, body: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        walked(tmp_path, blocks_of(f"```console\n{body}```\n"))
