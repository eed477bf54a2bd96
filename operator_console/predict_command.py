"""`fedqueue predict`: a model file on raw rows."""

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from client_worker.files import read_task, unreadable
from shared.errors import DataError, StorageError
from shared.tasks.spec import TaskSpec

if TYPE_CHECKING:  # they take half a second, which `fedqueue --help` should not
    import pyarrow as pa

    from operator_console.model_file import Floats
    from operator_console.prediction import Predicted


def predict(
    data: Annotated[Path, typer.Argument(metavar="data.csv", help="Raw rows, CSV or Parquet, with the task's columns.")],
    *,
    model: Annotated[
        Path, typer.Option(metavar="FILE", help="A model, safetensors or ONNX, as `fedqueue model export` writes it.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Where to write the predictions; else to the terminal.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Copied beside the predictions; repeatable. Else ids alone.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="From which probability on a row is called positive; else the model's.")
    ] = None,
    task: Annotated[Path | None, typer.Option(metavar="FILE", help="For a safetensors file without a card: its task.")] = None,
) -> None:
    """Predict for every row of a file; with a column of labels, say how good the predictions are.

    A column named id, or ending in _id, is kept. Empty cells, unknown categories and values beyond a range are told.
    """
    from operator_console.model_file import read_model
    from operator_console.prediction import Notes, kept_columns, predicted

    if out is not None and out.resolve() in (data.resolve(), model.resolve()):
        raise typer.BadParameter("it would overwrite what is read", param_hint="--out")
    found = read_model(model, task=read_task(task) if task else None)
    decision = threshold if threshold is not None else (found.card.decision if found.card else found.spec.label.threshold)
    notes = Notes()
    with _opened(data) as pieces:
        first = next(pieces)
        kept = kept_columns(found.spec, first.column_names, keep or [])
        stream = predicted(found, chain([first], pieces), kept, notes, source=str(data))
        with _written(out) as file:
            seen = _write(file, found.spec, stream, kept, decision)
    for line in notes.lines(found.spec):
        typer.echo(line, err=True)
    if found.spec.kind == "binary" and decision is None:
        typer.echo("no threshold was declared or measured, so no row is called positive; --threshold sets one", err=True)
    if out is not None:
        typer.echo(f"{seen.rows:,} predictions are written to {out}")
    if seen.labels:
        typer.echo(_judged(found.spec, seen, decision, source=str(data)), err=out is None)


@dataclass(slots=True)
class _Seen:
    """What passed by: the number of rows and, where the file has labels, those and the predictions."""

    rows: int = 0
    labels: "list[pa.ChunkedArray]" = field(default_factory=list)
    scores: "list[Floats]" = field(default_factory=list)


def _write(file: TextIO, spec: TaskSpec, stream: "Iterator[Predicted]", kept: Sequence[str], decision: float | None) -> _Seen:
    from operator_console.prediction import cells, columns_of

    writer, seen, columns = csv.writer(file, lineterminator="\n"), _Seen(), columns_of(spec, decision)
    twice = next((name for name in kept if name in columns), None)
    if twice is not None:
        raise typer.BadParameter(f"{twice!r} is what the prediction's own column is called", param_hint="--keep")
    writer.writerow([*kept, *columns])
    for piece in stream:
        seen.rows += len(piece.kept)
        if piece.labels is not None:
            seen.labels.append(piece.labels)
            seen.scores.append(piece.scores)
        writer.writerows((*one, *other) for one, other in zip(piece.kept, cells(spec, piece.scores, decision), strict=True))
    return seen


def _judged(spec: TaskSpec, seen: _Seen, decision: float | None, *, source: str) -> str:
    """How good the predictions are, or why that cannot be said."""
    import numpy as np
    import pyarrow as pa

    from operator_console.prediction import judged

    column = pa.chunked_array([chunk for labels in seen.labels for chunk in labels.chunks])
    try:
        figures, count = judged(spec, column, np.concatenate(seen.scores), decision, source=source)
    except DataError as error:
        return f"how good they are cannot be said: {error}"
    told = ", ".join(f"{name} {'does not exist' if value is None else format(value, '.4f')}" for name, value in figures.items())
    return f"on {count:,} rows with a label: {told}" if count else "no row has a label, so how good they are cannot be said"


@contextmanager
def _opened(data: Path) -> "Iterator[Iterator[pa.Table]]":
    import pyarrow as pa

    from shared.tasks.tables import read_pieces

    try:
        file = pa.OSFile(str(data))
    except OSError as error:
        raise unreadable(data, error) from error
    with file:
        yield read_pieces(file, source=str(data))


@contextmanager
def _written(out: Path | None) -> Iterator[TextIO]:
    """The terminal, or a file that is there as a whole or not at all."""
    if out is None:
        yield sys.stdout
        return
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with aside.open("w", newline="", encoding="utf-8") as file:
            yield file
        aside.replace(out)
    except OSError as error:
        raise StorageError(f"{out} cannot be written ({error.strerror or error}); name another file with --out") from error
    finally:
        aside.unlink(missing_ok=True)
