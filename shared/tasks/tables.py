"""CSV and Parquet into columns of text or numbers, from a file that the caller has opened."""

from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from shared.errors import DataError

PARQUET_MAGIC = b"PAR1"


def read_columns(file: BinaryIO, columns: Sequence[str], *, source: str) -> pa.Table:
    """The named columns, in that order; `source` names the file in errors. Parquet is known by its first four bytes.

    Raises DataError for an empty or unreadable file, a missing or repeated column, and for no rows.
    """
    magic = file.read(len(PARQUET_MAGIC))
    file.seek(0)
    if not magic:
        raise DataError(f"{source}: the file is empty; write a header line and one line per example")
    table = _read_parquet(file, source) if magic == PARQUET_MAGIC else _read_csv(file, columns, source)
    _require(table, columns, source)
    if table.num_rows == 0:
        raise DataError(f"{source}: the file has columns but no rows; add one line per example")
    return table.select(list(columns))


def _read_csv(file: BinaryIO, columns: Sequence[str], source: str) -> pa.Table:
    # Every declared column is read as text: guessed types would depend on the rows that happen to be there.
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False)
    try:
        return pa.csv.read_csv(file, convert_options=convert)
    except pa.ArrowInvalid as error:
        raise DataError(f"{source}: not a CSV file: {error}; save it as UTF-8 text with commas and one header line") from error


def _read_parquet(file: BinaryIO, source: str) -> pa.Table:
    try:
        return pa.parquet.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{source}: not a readable Parquet file: {error}; write it again") from error


def _require(table: pa.Table, columns: Sequence[str], source: str) -> None:
    present = table.column_names
    for name in columns:
        if name not in present:
            raise DataError(
                f"{source}: the column {name!r} is missing; add it, or correct its name in the task (present: {_some(present)})"
            )
        if present.count(name) > 1:
            raise DataError(f"{source}: the column {name!r} is there {present.count(name)} times; keep one")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
