"""AMQP header tables that would crash pika while it decodes them.

pika 1.4.4 raises out of its frame reader on a NaN, an infinity, a date beyond the year 9999 or deep nesting. The message
would be redelivered to the next connection, for ever: one institution could keep the aggregator down. Such a table is read
as empty instead, and the message is then refused like any other without our headers.
"""

import struct

import pika.data
from pika.exceptions import InvalidFieldTypeException

_UNREADABLE = (ArithmeticError, ValueError, OSError, RecursionError, struct.error, InvalidFieldTypeException)
_decode = pika.data.decode_table


def decode_table(encoded: bytes, offset: int) -> tuple[dict[str | bytes, object], int]:
    """What pika decodes, or an empty table where it cannot; and the offset after the table."""
    try:
        return _decode(encoded, offset)  # type: ignore[no-any-return]
    except _UNREADABLE:
        length: int = struct.unpack_from(">I", encoded, offset)[0]
        return {}, offset + 4 + length


def tolerate_hostile_tables() -> None:
    """Puts `decode_table` in the place of pika's."""
    pika.data.decode_table = decode_table
