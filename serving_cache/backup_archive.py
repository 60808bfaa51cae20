"""A backup's file, read as if anybody could have written it: all names and sizes are known before a byte is unpacked.

A tar file says of each member how large it is. Here only plain members are taken, whose bytes all stand in the file:
nothing unpacks to more than the file has. A member's name is in the one form that a backup writes, and stands once.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from almanac.clock import parse_time
from almanac.errors import DataError
from almanac.settings import FEATURES, MODELS

FORMAT = 1
MANIFEST = "manifest.json"
DUMP = "record.dump"
FOLDERS = (MODELS, FEATURES)
MANIFEST_BYTES_MAX = 128 * 1024 * 1024
MEMBERS_MAX = 500_000
NAME_BYTES_MAX, PART_BYTES_MAX = 1_024, 255
COPY_BYTES = 1024 * 1024
ROOM_BYTES_MIN = 64 * 1024 * 1024
"""What a file system must have left after everything was unpacked."""
_HEADERS = frozenset({"path", "size"})
"""PAX headers that a backup writes, for long names and large files."""
_VERSION = re.compile(r"[0-9A-Za-z.+!-]{1,64}", re.ASCII)
_CHECKSUM = re.compile(r"[0-9a-f]{64}", re.ASCII)


class _Said(msgspec.Struct, forbid_unknown_fields=True):
    """A manifest's JSON."""

    format: int
    made_at: str
    almanac: str
    schema: str | None
    checksums: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """What a backup says of itself.

    Args:
        made_at: aware UTC.
        almanac: version of the program that made it.
        schema: the database's schema version; None when it had none.
        checksums: SHA-256 of every other member, by name.
    """

    made_at: str
    almanac: str
    schema: str | None
    checksums: dict[str, str]

    def to_bytes(self) -> bytes:
        """As JSON."""
        return msgspec.json.format(msgspec.json.encode({"format": FORMAT, **self.__dict__}), indent=1)

    @classmethod
    def of_bytes(cls, data: bytes, path: Path) -> Manifest:
        """Read JSON.

        Raises:
            DataError: it is none of ours, or of a newer format.
        """
        try:
            found = msgspec.json.decode(data, type=_Said)
            parse_time(found.made_at)
        except (ValueError, RecursionError, OverflowError):
            raise DataError(f"{path} is not a backup of Almanac: name another file") from None
        texts = [found.almanac, *([found.schema] if found.schema is not None else [])]
        good = all(_VERSION.fullmatch(text) for text in texts)
        if not good or not all(_CHECKSUM.fullmatch(one) for one in found.checksums.values()):
            raise DataError(f"{path} is not a backup of Almanac: name another file")
        if found.format > FORMAT:
            raise DataError(f"{path} was made by a newer Almanac ({found.almanac}): restore it with that one")
        return cls(found.made_at, found.almanac, found.schema, found.checksums)


def unpack(path: Path, folder: Path) -> Manifest:
    """Unpack into an empty folder, and compare with the checksums.

    Raises:
        DataError: it is no backup, is damaged, or there is no room for it; says which member.
        OSError: a file cannot be read or written.
    """
    sizes = _sizes(path)
    need_room(path, folder, sum(sizes.values()))
    found: dict[str, str] = {}
    manifest: Manifest | None = None
    with _opened(path) as tar:
        while (entry := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]
            if sizes.get(entry.name) != entry.size:
                raise DataError(f"{path} changed while it was read: ask again")
            source = tar.extractfile(entry)
            if source is None:  # which `_sizes` has refused
                raise DataError(f"{path} holds {_shown(entry.name)}, which no backup has: use another backup")
            if entry.name == MANIFEST:
                manifest = Manifest.of_bytes(source.read(), path)
            else:
                found[entry.name] = _written(source, folder / entry.name)
    if manifest is None:
        raise DataError(f"{path} is cut off or not a backup (no {MANIFEST}): use another backup")
    wrong = sorted(
        name for name in found.keys() | manifest.checksums if found.get(name) != manifest.checksums.get(name)
    )
    if wrong:
        raise DataError(f"{path} is damaged ({_shown(wrong[0])} is not what was written): use another backup")
    return manifest


def need_room(path: Path, folder: Path, size: int) -> None:
    """Refuse what the file system has no room for.

    Raises:
        DataError: says how much is missing.
    """
    free = shutil.disk_usage(folder).free
    if size + ROOM_BYTES_MIN > free:
        raise DataError(f"{path} unpacks to {size:,} bytes, and {folder} has {free:,} free: make room")


def _sizes(path: Path) -> Mapping[str, int]:
    """Name and size of every member, from the headers alone."""
    found: dict[str, int] = {}
    left = path.stat().st_size
    with _opened(path) as tar:
        while (entry := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # which would keep them all in memory
            plain = entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not entry.issparse()
            if not plain or not is_name(entry.name) or tar.pax_headers or not entry.pax_headers.keys() <= _HEADERS:
                raise DataError(f"{path} holds {_shown(entry.name)}, which no backup has: use another backup")
            if entry.name in found:
                raise DataError(f"{path} holds {_shown(entry.name)} twice: use another backup")
            left -= tarfile.BLOCKSIZE + entry.size
            if left < 0 or entry.size < 0:  # GNU's numbers have a sign: a reader would go back and unpack bytes again
                raise DataError(
                    f"{path} is damaged or cut off ({_shown(entry.name)} says that it has {entry.size:,} bytes, and "
                    "they are not there): use another backup"
                )
            if entry.name == MANIFEST and entry.size > MANIFEST_BYTES_MAX:
                raise DataError(f"{path}: its manifest has more than {MANIFEST_BYTES_MAX:,} bytes: use another backup")
            found[entry.name] = entry.size
            if len(found) > MEMBERS_MAX:
                raise DataError(f"{path} has more than {MEMBERS_MAX:,} members: use another backup")
    folders = {parent for name in found for parent in _parents(name)}
    if clash := sorted(folders & found.keys()):
        raise DataError(f"{path} holds {_shown(clash[0])} as a file and as a folder: use another backup")
    return found


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, mode="r:", errorlevel=2) as tar:
            yield tar
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        said = ascii(str(error))[1:-1][:100]
        raise DataError(f"{path} is damaged or not a backup ({said}): use another backup") from None


def is_name(name: str) -> bool:
    """Whether a member may have this name: the dump's, the manifest's, or a file's below one of the folders."""
    if name in (MANIFEST, DUMP):
        return True
    try:
        sizes = [len(part.encode()) for part in name.split("/")]
    except UnicodeEncodeError:
        return False
    parts = name.split("/")
    return (
        len(parts) > 1
        and parts[0] in FOLDERS
        and name.isprintable()
        and len(name.encode()) <= NAME_BYTES_MAX
        and all(0 < size <= PART_BYTES_MAX for size in sizes)
        and not any(part.startswith(".") for part in parts)
    )


def _parents(name: str) -> Iterator[str]:
    parts = name.split("/")
    for length in range(1, len(parts)):
        yield "/".join(parts[:length])


def _written(source: object, target: Path) -> str:
    """Write a member; returns its checksum."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        while chunk := source.read(COPY_BYTES):  # type: ignore[attr-defined]
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _shown(name: str) -> str:
    return ascii(name[:100])
