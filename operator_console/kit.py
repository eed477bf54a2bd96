"""The kit: one archive with everything that one institution needs but its data. Equal contents give equal bytes."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from broker_config.authority import CA_FILE, CERTIFICATE_FILE, KEY_FILE
from broker_config.keyring import SEALING_FILE, SIGNING_FILE, TRUST_FILE
from broker_config.written import write_private

KEYS = "keys"
PASSWORD_FILE = "password"  # noqa: S105  a file's name
EXPLAINED = ("README.md", "compose.yml", "fedqueue-client.service")
SETTINGS = ("client.toml", "task.toml", *EXPLAINED)
PUBLIC = (CA_FILE, CERTIFICATE_FILE, f"{KEYS}/{TRUST_FILE}")
SECRETS = (PASSWORD_FILE, KEY_FILE, f"{KEYS}/{SIGNING_FILE}", f"{KEYS}/{SEALING_FILE}")
RENEWED = (CA_FILE, CERTIFICATE_FILE, KEY_FILE)
"""What another certificate changes."""
_WRITTEN_AT = 946_684_800  # 2000-01-01; tar warns of what is older than 1996


def write_kit(file: Path, folder: Path, names: tuple[str, ...] = SETTINGS + PUBLIC + SECRETS) -> None:
    """Packs those of these files that the folder has, into an archive that only the owner can read."""
    archive = packed({name: (folder / name).read_bytes() for name in names if (folder / name).exists()})
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(file, archive)


def sha256(kit: Path) -> str:
    """What `sha256sum` prints of a kit."""
    return hashlib.sha256(kit.read_bytes()).hexdigest()


def packed(contents: Mapping[str, bytes]) -> bytes:
    """A tar.gz of relative paths, without owners and times; secrets have mode 600, the rest 644, folders 700."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for folder in sorted({name.rpartition("/")[0] for name in contents} - {""}):
            archive.addfile(_member(folder, 0o700, kind=tarfile.DIRTYPE))
        for name, content in sorted(contents.items()):
            member = _member(name, 0o600 if name in SECRETS else 0o644)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), mtime=0)


def _member(name: str, mode: int, *, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.type, member.mtime = mode, kind, _WRITTEN_AT
    return member
