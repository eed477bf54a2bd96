"""`python -m campaigns.gather FILE...`: the tables of docs/reliability.md, from what `--json` wrote."""

from pathlib import Path
from typing import Annotated

import typer

from campaigns.results import Result, as_markdown, summary

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def gather(files: Annotated[list[Path], typer.Argument(help="What campaigns wrote with --json.")]) -> None:
    """Prints a sentence, a table of campaigns and a table of faults by kind."""
    results = sorted((Result.model_validate_json(file.read_text()) for file in files), key=lambda result: result.seed)
    typer.echo(f"{summary(results)}\n\n{as_markdown(results)}")


if __name__ == "__main__":
    app()
