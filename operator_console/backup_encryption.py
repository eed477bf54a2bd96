"""A backup under a passphrase: a stream of sealed blocks, none of which can be altered, moved, left out or added.

ChaCha20-Poly1305 under a key of scrypt; a block's nonce is its number and whether it is the last (Hoang, Reyhanitabar, Rogaway,
Vizár: Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance, 2015, STREAM).
"""

import os
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from shared.errors import SettingsError

MAGIC = b"fedqueue sealed backup 1\n"
BLOCK_BYTES = 2**16
_SALT_BYTES = 16
_TAG_BYTES = 16
_SCRYPT_N = 2**17
"""128 MiB of memory and about half a second for each guess."""


class SealedWriter:
    """Writes what it is given, sealed. Only `close` makes it whole."""

    def __init__(self, out: BinaryIO, passphrase: bytes) -> None:
        salt = os.urandom(_SALT_BYTES)
        out.write(MAGIC + salt)
        self._out, self._cipher = out, _cipher(passphrase, salt)
        self._waiting, self._number = bytearray(), 0

    def write(self, data: bytes) -> int:
        """Seals all but the last block, which may turn out to be the last one."""
        self._waiting += data
        while len(self._waiting) > BLOCK_BYTES:
            self._seal(BLOCK_BYTES, last=False)
        return len(data)

    def close(self) -> None:
        """Seals the last block."""
        self._seal(len(self._waiting), last=True)

    def _seal(self, size: int, *, last: bool) -> None:
        self._out.write(self._cipher.encrypt(_nonce(self._number, last=last), bytes(self._waiting[:size]), MAGIC))
        del self._waiting[:size]
        self._number += 1


class SealedReader:
    """Reads what a SealedWriter wrote; nothing is given out before its block is checked."""

    def __init__(self, source: BinaryIO, passphrase: bytes) -> None:
        source.read(len(MAGIC))
        self._source, self._cipher = source, _cipher(passphrase, source.read(_SALT_BYTES))
        self._open, self._number = bytearray(), 0
        self._sealed = source.read(BLOCK_BYTES + _TAG_BYTES)

    def read(self, size: int) -> bytes:
        """Up to so many bytes; none at the end. Raises SettingsError for another passphrase or an altered file."""
        while len(self._open) < size and self._sealed:
            following = self._source.read(BLOCK_BYTES + _TAG_BYTES)
            try:
                self._open += self._cipher.decrypt(_nonce(self._number, last=not following), self._sealed, MAGIC)
            except InvalidTag:
                raise SettingsError("the passphrase is not that of this backup, or the backup was altered or cut off") from None
            self._sealed, self._number = following, self._number + 1
        given = bytes(self._open[:size])
        del self._open[:size]
        return given


def _cipher(passphrase: bytes, salt: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(Scrypt(salt=salt, length=32, n=_SCRYPT_N, r=8, p=1).derive(passphrase))


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
