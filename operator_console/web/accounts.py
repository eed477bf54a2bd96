"""Who may log in to the console: `users.json`, with a scrypt hash for each name."""

import hashlib
import hmac
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker_config.secret_files import demand_private
from broker_config.written import write_private
from shared.errors import SettingsError
from shared.settings import explain

Role = Literal["viewer", "operator"]
"""A viewer looks; an operator also gives orders and reads the audit."""
FILE = "users.json"
LEAST_CHARACTERS = 12
MOST_BYTES = 1024
MOST_USERS = 1000
LONGEST_NAME = 64
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._@-]{{0,{LONGEST_NAME - 1}}}")
_SCRYPT = {"n": 2**15, "r": 8, "p": 3}
"""32 MiB and a fifth of a second for each guess (OWASP Password Storage Cheat Sheet)."""
_SALT_BYTES, _HASH_BYTES = 16, 32


class Account(BaseModel):
    """One person. `hash` is of the password under `salt`, both in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    role: Role
    salt: str = Field(pattern=r"^[0-9a-f]{32}$", repr=False)
    hash: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    users: dict[str, Account] = {}


class AccountBook:
    """The file of users. It is read again whenever it was replaced, so that a change holds at once."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._read: tuple[tuple[int, int, int], Mapping[str, Account]] | None = None
        self._nobody = Account(role="viewer", salt=os.urandom(_SALT_BYTES).hex(), hash=os.urandom(_HASH_BYTES).hex())

    def all(self) -> Mapping[str, Account]:
        """Accounts by name; none where there is no file. Raises SettingsError where it is not what this class writes."""
        try:
            status = self.file.stat()
        except FileNotFoundError:
            return {}
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._read is None or self._read[0] != stamp:
            self._read = (stamp, self._load())
        return self._read[1]

    def _load(self) -> Mapping[str, Account]:
        try:
            demand_private(self.file, "the console's file of users")
            return _File.model_validate_json(self.file.read_bytes()).users
        except OSError as error:
            raise SettingsError(f"{self.file} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise SettingsError(f"{self.file} is not a file of users: {'; '.join(explain(error))}") from None

    def add(self, name: str, role: Role, password: str) -> None:
        """Raises SettingsError for a name that is there already or no name, and for a password that is too short."""
        if _NAME.fullmatch(name) is None:
            raise SettingsError(f"{name!r} is no name for a user: 1 to 64 of the letters A-Z a-z 0-9 . _ @ -")
        if name in self.all():
            raise SettingsError(f"{name} is a user already; `fedqueue console-user password {name}` gives another password")
        if len(self.all()) >= MOST_USERS:
            raise SettingsError(f"{self.file} holds {MOST_USERS} users already; remove one first")
        self._save({**self.all(), name: _account(role, _checked(password))})

    def remove(self, name: str) -> None:
        """Raises SettingsError for a stranger. The sessions of whoever is removed end."""
        self.demand(name)
        self._save({other: account for other, account in self.all().items() if other != name})

    def set_password(self, name: str, password: str) -> None:
        """Raises SettingsError for a stranger. The sessions under the former password end."""
        account = self.demand(name)
        self._save({**self.all(), name: _account(account.role, _checked(password))})

    def verify(self, name: str, password: str) -> Account | None:
        """The account, where this is its password. Takes as long for a name that is not there."""
        account = self.all().get(name)
        against = account or self._nobody
        fits = hmac.compare_digest(_hashed(password, bytes.fromhex(against.salt)), against.hash)
        return account if fits else None

    def demand(self, name: str) -> Account:
        """One account. Raises SettingsError for a stranger."""
        account = self.all().get(name)
        if account is None:
            raise SettingsError(f"{name} is not a user; `fedqueue console-user list` shows who is")
        return account

    def _save(self, users: Mapping[str, Account]) -> None:
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self.file, (_File(users=dict(users)).model_dump_json(by_alias=True, indent=2) + "\n").encode())


def _checked(password: str) -> str:
    if len(password) < LEAST_CHARACTERS:
        raise SettingsError(
            f"the password has fewer than {LEAST_CHARACTERS} characters; take a sentence, or have one drawn: --draw"
        )
    if len(password.encode()) > MOST_BYTES:
        raise SettingsError(f"the password has more than {MOST_BYTES} bytes")
    return password


def _account(role: Role, password: str) -> Account:
    salt = os.urandom(_SALT_BYTES)
    return Account(role=role, salt=salt.hex(), hash=_hashed(password, salt))


def _hashed(password: str, salt: bytes) -> str:
    """The same for what looks the same, however a keyboard composes it."""
    words = unicodedata.normalize("NFC", password).encode(errors="replace")[:MOST_BYTES]
    return hashlib.scrypt(words, salt=salt, maxmem=2**27, dklen=_HASH_BYTES, **_SCRYPT).hex()
