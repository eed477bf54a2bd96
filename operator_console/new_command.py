"""`fedqueue new`: a small working project, with made-up rows or with those of one's own CSV file."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from shared.errors import SettingsError, StorageError

NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
MADE_UP_ROWS = 1000
PLACES = ("north", "south", "east", "west")


def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of the project and its folder: lower-case letters, digits, dashes.")
    ],
    *,
    task: Annotated[
        Literal["tabular", "torch"], typer.Option(help="A ready model of a table, or one to write in torch.")
    ] = "tabular",
    rows_from: Annotated[
        Path | None, typer.Option("--from", metavar="FILE.csv", help="Rows to try it with; without it, made-up ones.")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="With --from: the column that is to be predicted.")] = None,
    institutions: Annotated[int, typer.Option(min=2, max=20, help="Among how many the rows are divided.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="For the division, or for the made-up rows.")] = 0,
) -> None:
    """Write a small working project into a new folder: task, rows to try it with, scenario, README with the commands.

    With --from, ranges and categories are read from the file: right for a trial, to be replaced before private rows come.
    """
    folder = _free_folder(name)
    if (rows_from is None) != (label is None):
        raise typer.BadParameter("--from and --label go together: a file, and the column in it that is to be predicted")
    ids = PLACES[:institutions] if institutions <= len(PLACES) else [f"place-{each + 1}" for each in range(institutions)]
    # numpy and pyarrow cost half a second, which a wrong name should not
    from operator_console.project import write
    from operator_console.project_rows import made_up, of_file

    own = task == "torch"
    if rows_from is None or label is None:
        project = made_up(name, ids, rows_each=MADE_UP_ROWS, seed=seed, own_torch_model=own)
    else:
        project = of_file(name, rows_from, label, ids, seed=seed, own_torch_model=own)
    try:
        write(folder, project.files())
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}); go to a folder where you may write") from error
    for column, why in project.draft.left_out.items():
        typer.echo(f"the column {column} is left out: {why}")
    if rows_from is not None:
        typer.echo(
            f"ranges and categories in {folder / 'task.toml'} are those of {rows_from}: look them through, and replace them"
        )
        typer.echo("by what is publicly known before institutions bring private rows")
    typer.echo(f"the project is in {folder}: its README.md has the commands. Does it learn at all? Try, without a broker:")
    typer.echo(f"  cd {folder}" + (" && export PYTHONPATH=$PWD" if own else ""))
    typer.echo("  fedqueue simulate scenario.toml")


def _free_folder(name: str) -> Path:
    if NAME.fullmatch(name) is None:
        raise SettingsError(
            f"{name!r} cannot be the name: a lower-case letter, then lower-case letters, digits and dashes, such as my-federation"
        )
    folder = Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder} is there already and not empty; choose another name, or delete it")
    return folder
