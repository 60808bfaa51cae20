"""The door `almanac restore`: backups of which a member, a header or a byte is another."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from almanac.errors import DataError
from serving_cache import backup_archive
from serving_cache.backup_archive import unpack
from tests.fuzz.reasons import Raises
from tests.fuzz.runner import ACCEPTED, MEBIBYTE, OneByOne, Verdict

RAISES = Raises((backup_archive,), ("DataError",))
RARE = {
    "backup_archive.unpack#1",  # it changed between two readings
    "backup_archive.unpack#2",  # which the reading before refuses
    "backup_archive.need_room#1",  # the disk is full
    "backup_archive._sizes#4",  # a manifest of more than 128 MiB
    "backup_archive._sizes#5",  # half a million members
}
"""Refusals that take a race, a full disk, or more bytes than a fuzzer writes."""
NAMES = (
    "models//a", "models/./a", "models/../a", "../x", "/etc/x", "models", "models/a", "models/a/model.onnx",
    "record.dump", "manifest.json", "features/.x", "features/\x1b[2J", "features/é", "features/" + "n" * 300,
    "features/\udc80", "", "x",
)  # fmt: skip
TYPES = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.AREGTYPE, b"Z")
VALUES: tuple[Any, ...] = (None, 1, -1, 1e300, "", "\x1b[2J", [], {}, "0" * 64, "2026-11-01T00:00:00Z", 2)
WRITTEN_TIMES_MAX = 2
"""How many bytes may be unpacked for each of the file's."""


class Restore(OneByOne):
    """The door."""

    reasons = RAISES.names - RARE
    memory_bytes_max = 128 * MEBIBYTE

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Restore]:
        """A place for backups, and one that they are unpacked to."""
        self._path, self._into = folder / "backup.tar", folder / "into"
        yield self

    def send(self, random: Random) -> Verdict:
        """Another one each time."""
        data = _backup(random)
        self._path.write_bytes(data)
        self._into.mkdir()
        try:
            unpack(self._path, self._into)
            return Verdict(ACCEPTED, True)
        except DataError as error:
            if not str(error).isprintable():
                raise AssertionError(f"not printable: {error!r}") from error
            reason = RAISES.of(error)
            return Verdict(reason, not reason.startswith("backup_archive._opened"))
        finally:
            written = sum(one.stat().st_size for one in self._into.rglob("*") if one.is_file())
            if written > WRITTEN_TIMES_MAX * len(data):
                raise AssertionError(f"{written:,} bytes were written of a file of {len(data):,}")
            shutil.rmtree(self._into)


def _backup(random: Random) -> bytes:
    members = {
        "record.dump": random.randbytes(random.randrange(900)),
        "models/weather/v0001/model.onnx": random.randbytes(random.randrange(2_000)),
        "features/weather/2026-11-01.parquet": random.randbytes(random.randrange(50)),
    }
    said: dict[str, Any] = {
        "format": 1, "made_at": "2026-11-01T00:00:00Z", "almanac": "0.1.0", "schema": "0007",
        "checksums": {name: hashlib.sha256(data).hexdigest() for name, data in members.items()},
    }  # fmt: skip
    entries = [(tarfile.TarInfo(name), data) for name, data in members.items()]
    change = random.choice((None, None, *CHANGES))
    if change is not None:
        change(entries, said, random)
    text = msgspec.json.encode(said) if random.random() < 0.97 else b"[" * 5_000
    if random.random() < 0.97:
        entries.insert(random.randrange(len(entries) + 1), (tarfile.TarInfo("manifest.json"), text))
    file = io.BytesIO()
    form = random.choice((tarfile.PAX_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    headers = {"comment": "x"} if random.random() < 0.02 else None
    with tarfile.open(fileobj=file, mode="w", format=form, pax_headers=headers, errors="surrogateescape") as tar:
        for entry, data in entries:
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    data = file.getvalue()
    match random.randrange(12):
        case 0:
            return data[: random.randrange(len(data))]
        case 1:
            at = random.randrange(min(len(data), 6_000))
            return data[:at] + random.randbytes(random.choice((1, 1, 8))) + data[at + 1 :]
        case 2:
            return _another_size(data, random)
    return data


def _another_size(data: bytes, random: Random) -> bytes:
    """The first header says another size or type, with a checksum that is right."""
    header = bytearray(data[:512])
    size = random.choice((0, 1, 511, 1 << 20, (1 << 33) - 1, -512, -1_024))
    header[124:136] = b"%011o\0" % size if size >= 0 else size.to_bytes(12, "big", signed=True)
    header[156:157] = random.choice((b"0", b"S", b"x", b"g", b"L", b"K", b"7"))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


Entries = list[tuple[tarfile.TarInfo, bytes]]


def _other_name(entries: Entries, said: dict[str, Any], random: Random) -> None:
    entry, data = random.choice(entries)
    entries.append((tarfile.TarInfo(random.choice((*NAMES, entry.name))), data))


def _other_type(entries: Entries, said: dict[str, Any], random: Random) -> None:
    entry = tarfile.TarInfo("models/other")
    entry.type, entry.linkname = random.choice(TYPES), random.choice(("/etc/passwd", "record.dump"))
    entries.insert(random.randrange(len(entries)), (entry, b""))


def _sparse(entries: Entries, said: dict[str, Any], random: Random) -> None:
    entry = tarfile.TarInfo("models/sparse")
    entry.pax_headers = {
        "GNU.sparse.major": random.choice(("0", "1")), "GNU.sparse.minor": random.choice(("0", "1")),
        "GNU.sparse.name": "models/sparse", "GNU.sparse.realsize": str(random.choice((1, 2 << 30, 1 << 62))),
        "GNU.sparse.map": "0,512",
    }  # fmt: skip
    entries.append((entry, b"1\n0\n512\n".ljust(512, b"\0") + b"x" * 512))


def _other_manifest(entries: Entries, said: dict[str, Any], random: Random) -> None:
    name = random.choice((*said, "more"))
    if name == "checksums" and random.random() < 0.7:
        said[name] = {**said[name], random.choice((*NAMES[:-6], *said[name])): random.choice(("0" * 64, "", "z" * 64))}
    else:
        said[name] = random.choice(VALUES)


def _clash(entries: Entries, said: dict[str, Any], random: Random) -> None:
    entries.append((tarfile.TarInfo("models/weather"), b"x"))


CHANGES: tuple[Callable[[Entries, dict[str, Any], Random], None], ...] = (
    _other_name, _other_type, _sparse, _other_manifest, _clash,
)  # fmt: skip
DOOR = Restore()
