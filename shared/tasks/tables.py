"""CSV and Parquet into columns of text or numbers, from a file that the caller has opened."""

import csv
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from shared.errors import DataError

PARQUET_MAGIC = b"PAR1"
BLOCK_BYTES = 2**20


def read_columns(file: BinaryIO, *, source: str) -> pa.Table:
    """Every column; `source` names the file in errors. Parquet is known by its first four bytes, all else is read as CSV.

    CSV columns come as text: guessed types would depend on the rows that happen to be there. Raises DataError for an empty
    or unreadable file, and for no rows.
    """
    magic = file.read(len(PARQUET_MAGIC))
    file.seek(0)
    if not magic:
        raise DataError(f"{source}: the file is empty; write a header line and one line per example")
    table = _read_parquet(file, source) if magic == PARQUET_MAGIC else _read_csv(file, source)
    if table.num_rows == 0:
        raise DataError(f"{source}: the file has columns but no rows; add one line per example")
    return table


def read_pieces(file: pa.NativeFile, *, source: str) -> Iterator[pa.Table]:
    """The same, a piece after the other, for files that need not fit into memory; `file` is Arrow's own. Raises DataError."""
    rows = 0
    start = file.read(BLOCK_BYTES)
    file.seek(0)
    if not start:
        raise DataError(f"{source}: the file is empty; write a header line and one line per example")
    is_parquet = start.startswith(PARQUET_MAGIC)
    try:
        if is_parquet:
            batches = pa.parquet.ParquetFile(file).iter_batches()
        else:
            batches = pa.csv.open_csv(file, convert_options=_as_text(start.split(b"\n", 1)[0]))
        for batch in batches:
            rows += batch.num_rows
            yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        if "Empty CSV file" not in str(error):
            raise _unreadable(source, error, is_parquet=is_parquet) from error
    if not rows:
        raise DataError(f"{source}: the file has columns but no rows; add one line per example")


def select(table: pa.Table, columns: Sequence[str], *, source: str) -> pa.Table:
    """The named columns, in that order. Raises DataError for one that is missing or there twice."""
    present = table.column_names
    for name in columns:
        if name not in present:
            there = ", ".join(present[:12]) + (f" and {len(present) - 12} more" if len(present) > 12 else "")
            raise DataError(
                f"{source}: the column {name!r} is missing; add it, or correct its name in the task (the file has {there})"
            )
        if present.count(name) > 1:
            raise DataError(f"{source}: the column {name!r} is there {present.count(name)} times; keep one")
    return table.select(list(columns))


def _read_csv(file: BinaryIO, source: str) -> pa.Table:
    try:
        options = _as_text(file.readline())
        file.seek(0)
        return pa.csv.read_csv(_native(file), convert_options=options)
    except (pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(source, error, is_parquet=False) from error


def _as_text(first_line: bytes) -> pa.csv.ConvertOptions:
    """Every column of this header line as text."""
    # The byte order mark is what spreadsheets write before the first name.
    header = next(csv.reader([first_line.decode("utf-8-sig")]), [])
    return pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False)


def _unreadable(source: str, error: Exception, *, is_parquet: bool) -> DataError:
    if is_parquet:
        return DataError(f"{source}: not a readable Parquet file: {error}; write it again")
    return DataError(f"{source}: not a CSV file: {error}; save it as UTF-8 text with commas and one header line")


def _read_parquet(file: BinaryIO, source: str) -> pa.Table:
    try:
        return pa.parquet.read_table(_native(file))
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(source, error, is_parquet=True) from error


def _native(file: BinaryIO) -> pa.BufferReader:
    """The content in Arrow's own memory: a thread of Arrow that reads a Python file as the process ends aborts it."""
    with pa.BufferOutputStream() as sink:
        while block := file.read(BLOCK_BYTES):
            sink.write(block)
        return pa.BufferReader(sink.getvalue())
