"""The operator's side of a federation as one archive: what cannot be made again, with the hash of every file."""

import hashlib
import json
import os
import shutil
import tarfile
import tomllib
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

from operator_console.backup_encryption import MAGIC, SealedReader, SealedWriter
from operator_console.federation_folder import FederationFolder
from shared.errors import SettingsError, StorageError

CONTENTS = "backup.json"
"""The archive's last member: every file's size and SHA-256."""
SCHEMA = 1
FILES = (
    *("broker.json", "federation.json", "run.secret", "task.toml", "members.txt", "aggregator.toml"),
    *("console/users.json", "console/audit.jsonl"),
)
FOLDERS = ("ca", "tls", "keys", "aggregator")
_UNFINISHED = (".new", ".part")
_BUFFER_BYTES = 2**20
_MAX_CONTENTS_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Kept:
    """One file of a backup, its path relative to the folder."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Backup:
    """What is in an archive, and the SHA-256 of the archive itself."""

    run_id: str
    files: tuple[Kept, ...]
    sha256: str


def write_backup(folder: FederationFolder, file: Path, passphrase: bytes | None) -> Backup:
    """Writes the archive, readable by its owner only, whole or not at all. The aggregator may run meanwhile.

    Raises SettingsError where there is no federation, or a file of that name already; StorageError where it cannot be written.
    """
    run_id = folder.facts().run_id
    folder.logins()
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            kept = _write(folder, run_id, out, passphrase)
            out.flush()
            os.fsync(out.fileno())
        os.link(aside, file)  # unlike a rename, it never overwrites
    except FileExistsError:
        raise SettingsError(f"{file} exists already; a backup never overwrites one: choose another name") from None
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror or error}; no backup was made") from error
    finally:
        with suppress(OSError):
            aside.unlink()
    return Backup(run_id, tuple(kept), hash_of(file))


def read_backup(file: Path, target: Path, passphrase: bytes | None) -> Backup:
    """Puts a backup into a folder that is empty or not there, once every file's hash is checked; else nothing is there.

    Raises SettingsError where the folder is in use, the passphrase is another one, or the archive is not what was written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SettingsError(f"{target} is not empty; restore into another folder, and look which one is right")
    staging = target.with_name(f".{target.name}.restoring.{os.getpid()}")
    try:
        with file.open("rb") as source:
            staging.mkdir(mode=0o700, parents=True)
            run_id, kept = _read(source, staging, passphrase)
        if target.exists():
            target.rmdir()
        staging.rename(target)
    except OSError as error:
        raise StorageError(f"{file} cannot be restored into {target}: {error.strerror or error}") from error
    except (tarfile.TarError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{file} is not a backup as it was written ({error}); use another one") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Backup(run_id, kept, hash_of(file))


def hash_of(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def is_sealed(file: Path) -> bool:
    """Whether a backup needs its passphrase. Raises SettingsError where it cannot be read."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from error


def left_out(folder: FederationFolder) -> list[str]:
    """What stands in the folder and is in no backup."""
    kept = {name.partition("/")[0] for name in _names(folder)}
    return sorted(each.name + ("/" if each.is_dir() else "") for each in folder.path.iterdir() if each.name not in kept)


def _names(folder: FederationFolder) -> list[str]:
    """Every file that is to be kept, relative to the folder."""
    rows, state = _named_in_settings(folder, "held_out_file"), _named_in_settings(folder, "state_folder")
    names = [name for name in (*FILES, *rows) if (folder.path / name).is_file()]
    for place in dict.fromkeys([*FOLDERS, *state]):
        files = (each for each in sorted((folder.path / place).rglob("*")) if each.is_file() and not each.is_symlink())
        names += [each.relative_to(folder.path).as_posix() for each in files if each.suffix not in _UNFINISHED]
    return list(dict.fromkeys(names))


def _named_in_settings(folder: FederationFolder, key: str) -> list[str]:
    """A path of the aggregator's settings, where it is inside the folder."""
    with suppress(OSError, ValueError):
        value = tomllib.loads(folder.aggregator_file.read_text()).get(key)
        inside = (folder.path / str(value)).resolve().relative_to(folder.path.resolve())
        return [inside.as_posix()] if value and inside != Path() else []
    return []


def _write(folder: FederationFolder, run_id: str, out: BinaryIO, passphrase: bytes | None) -> list[Kept]:
    sealed = None if passphrase is None else SealedWriter(out, passphrase)
    with tarfile.open(fileobj=cast("IO[bytes]", sealed or out), mode="w|gz") as archive:
        kept = [_add(archive, folder.path, name) for name in _names(folder)]
        contents = {"schema": SCHEMA, "run_id": run_id, "files": {each.path: [each.size, each.sha256] for each in kept}}
        text = json.dumps(contents, indent=1).encode()
        archive.addfile(_member(CONTENTS, len(text)), BytesIO(text))
    if sealed is not None:
        sealed.close()
    return kept


def _add(archive: tarfile.TarFile, folder: Path, name: str) -> Kept:
    """A file as it is now: whoever replaces it by a rename meanwhile, as the aggregator does, replaces another one."""
    with (folder / name).open("rb") as opened:
        source = _Hashed(opened)
        size = os.fstat(opened.fileno()).st_size
        archive.addfile(_member(name, size), cast("IO[bytes]", source))
    return Kept(name, size, source.digest.hexdigest())


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


class _Hashed:
    """Hashes what is read of a file."""

    def __init__(self, source: BinaryIO | IO[bytes]) -> None:
        self._source, self.digest = source, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        return data


def _read(source: BinaryIO, staging: Path, passphrase: bytes | None) -> tuple[str, tuple[Kept, ...]]:
    plain = source if passphrase is None else SealedReader(source, passphrase)
    found: dict[str, Kept] = {}
    with tarfile.open(fileobj=cast("IO[bytes]", plain), mode="r|gz") as archive:
        for member in archive:
            opened = archive.extractfile(member) if member.isreg() else None
            if opened is None:
                raise ValueError(f"{member.name!r} is no file")
            if member.name == CONTENTS:
                return _checked(json.loads(opened.read(_MAX_CONTENTS_BYTES)), found)
            if member.name in found:
                raise ValueError(f"{member.name!r} is there twice")
            found[member.name] = _extract(opened, staging, member.name)
    raise ValueError("it was cut off")


def _checked(contents: dict[str, Any], found: dict[str, Kept]) -> tuple[str, tuple[Kept, ...]]:
    if contents["schema"] != SCHEMA:
        raise ValueError("it is of another version of fedqueue")
    told = {path: Kept(path, size, sha256) for path, (size, sha256) in contents["files"].items()}
    wrong = sorted(path for path in told.keys() | found.keys() if told.get(path) != found.get(path))
    if wrong:
        raise ValueError(f"{wrong[0]!r} is not the file that was kept")
    return str(contents["run_id"]), tuple(found.values())


def _extract(opened: IO[bytes], staging: Path, name: str) -> Kept:
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or place.as_posix() != name or "\\" in name or not name.isprintable():
        raise ValueError(f"{name!r} is outside of the folder")
    file, source, size = staging / place, _Hashed(opened), 0
    for parent in reversed(place.parents):
        (staging / parent).mkdir(mode=0o700, exist_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        for part in _parts(source):
            size += out.write(part)
        out.flush()
        os.fsync(out.fileno())
    return Kept(name, size, source.digest.hexdigest())


def _parts(source: _Hashed) -> Iterator[bytes]:
    while part := source.read(_BUFFER_BYTES):
        yield part
