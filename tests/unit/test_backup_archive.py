"""A backup that somebody else wrote: refused with the member and the reason, before anything is unpacked."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from almanac.errors import DataError
from serving_cache import backup_archive
from serving_cache.backup_archive import unpack

NO = "which no backup has"
FILES = {"record.dump": b"PGDMP", "models/a/model.onnx": b"m" * 700, "features/shop/2026-11-01.parquet": b"f" * 9}


def manifest(files: dict[str, bytes], **changed: Any) -> bytes:
    said = {
        "format": 1, "made_at": "2026-11-01T00:00:00Z", "almanac": "0.1.0", "schema": "0007",
        "checksums": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }  # fmt: skip
    return json.dumps(said | changed).encode()


def member(name: str, data: bytes = b"", **changed: Any) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for field, value in changed.items():
        setattr(entry, field, value)
    return entry, data


def written(path: Path, *more: tuple[tarfile.TarInfo, bytes], said: bytes | None = None, **options: Any) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, **options) as tar:
        for entry, data in [*(member(name, data) for name, data in FILES.items()), *more]:
            tar.addfile(entry, io.BytesIO(data))
        entry, data = member("manifest.json", said or manifest(FILES))
        tar.addfile(entry, io.BytesIO(data))
    return path


def unpacked(path: Path) -> dict[str, bytes]:
    folder = path.with_name("into")
    folder.mkdir()
    try:
        unpack(path, folder)
    finally:
        found = {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
    return found


def sparse_pax(path: Path) -> Path:
    """Ten kilobytes that unpack to 2 GiB: a sparse member, as GNU tar writes it into PAX headers."""
    headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "models/sparse",
        "GNU.sparse.realsize": str(2 << 30),
    }  # fmt: skip
    data = b"1\n0\n512\n".ljust(512, b"\0") + b"x" * 512
    return written(path, member("models/sparse", data, pax_headers=headers))


def sparse_gnu(path: Path) -> Path:
    """The same as an older GNU tar has it: a type of its own."""
    written(path)
    entry = tarfile.TarInfo("models/sparse")
    entry.type, entry.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410], header[483:495] = b"%011o\0" % 0, b"%011o\0" % 512, b"%011o\0" % (2 << 30)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    body = path.read_bytes()
    path.write_bytes(bytes(header[:512]) + b"x" * 512 + body)
    return path


def cut_off(path: Path) -> Path:
    written(path)
    path.write_bytes(path.read_bytes()[:1_700])
    return path


def claimed_size(path: Path) -> Path:
    entry = tarfile.TarInfo("models/large")
    entry.size = 7 << 30
    path.write_bytes(entry.tobuf(tarfile.PAX_FORMAT) + b"x" * 1_024)
    return path


def sized(name: str, size: int) -> bytes:
    """A header whose size is one of GNU's numbers, which have a sign."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def going_back(path: Path) -> Path:
    """Each member takes all headers up to one of negative size, which leads back to the member behind it."""
    count = 50
    front = [sized(f"models/a{number}", 512 * (count - 1)) for number in range(count)]
    back = [sized(f"models/b{number}", -512 * count if number < count - 1 else 0) for number in range(count)]
    path.write_bytes(b"".join([*front, *back]) + b"\0" * 1_024)
    return path


def test_a_good_backup_is_unpacked(tmp_path: Path) -> None:
    long = f"features/{'é' * 120}/{'p' * 200}.parquet"  # which needs a PAX header
    files = FILES | {long: b"l"}
    assert unpacked(written(tmp_path / "b.tar", member(long, b"l"), said=manifest(files))) == files


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (sparse_pax, "'models/sparse', which no backup has"),
        (sparse_gnu, "'models/sparse', which no backup has"),
        (cut_off, "is damaged or cut off .'models/a/model.onnx' says that it has 700 bytes"),
        (claimed_size, "'models/large' says that it has 7,516,192,768 bytes, and they are not there"),
        (going_back, "'models/b0' says that it has -25,600 bytes, and they are not there"),
        (lambda at: written(at, member("models//a", b"m")), "'models//a', which no backup has"),
        (lambda at: written(at, member("models/a/model.onnx", b"m")), "'models/a/model.onnx' twice"),
        (lambda at: written(at, member("models/a", b"m")), "'models/a' as a file and as a folder"),
        (lambda at: written(at, member("models/./a", b"m")), NO),
        (lambda at: written(at, member("models/../../x", b"m")), NO),
        (lambda at: written(at, member("/models/x", b"m")), NO),
        (lambda at: written(at, member("models/", b"")), NO),
        (lambda at: written(at, member("models/.hidden", b"")), NO),
        (lambda at: written(at, member("models/a\x1b[2J", b"")), r"'models/a\\x1b\[2J', which no backup has"),
        (lambda at: written(at, member("models/" + "n" * 256, b"")), NO),
        (lambda at: written(at, member("elsewhere", b"")), NO),
        (lambda at: written(at, member("models/l", type=tarfile.SYMTYPE, linkname="/etc/passwd")), NO),
        (lambda at: written(at, member("models/l", type=tarfile.LNKTYPE, linkname="record.dump")), NO),
        (lambda at: written(at, member("models/d", type=tarfile.CHRTYPE, devmajor=1, devminor=3)), NO),
        (lambda at: written(at, member("models/p", type=tarfile.FIFOTYPE)), NO),
        (lambda at: written(at, member("models/d", type=tarfile.DIRTYPE)), NO),
        (lambda at: written(at, member("models/x", b"m", pax_headers={"uid": "0"})), NO),
        (lambda at: written(at, pax_headers={"path": "models/all"}), NO),
        (lambda at: written(at, member("models/x", b"m")), "'models/x' is not what was written"),
        (lambda at: written(at, said=manifest(FILES | {"models/y": b""})), "'models/y' is not what was written"),
        (lambda at: written(at, said=manifest(FILES | {"record.dump": b"else"})), "'record.dump' is not what was"),
        (lambda at: written(at, said=b"[" * 200_000), "is not a backup of Almanac"),
        (lambda at: written(at, said=manifest(FILES).replace(b": 1,", b": 1e400,")), "is not a backup"),
        (lambda at: written(at, said=manifest(FILES, made_at="\x1b[2J")), "is not a backup of Almanac"),
        (lambda at: written(at, said=manifest(FILES, almanac="\x1b[2J")), "is not a backup of Almanac"),
        (lambda at: written(at, said=manifest(FILES, checksums=[])), "is not a backup of Almanac"),
        (lambda at: written(at, said=manifest(FILES, more=1)), "is not a backup of Almanac"),
        (lambda at: written(at, said=manifest(FILES, format=2)), "made by a newer Almanac"),
    ],
)  # fmt: skip
def test_what_no_backup_has_is_refused_by_name(made: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    path = made(tmp_path / "b.tar")
    with pytest.raises(DataError, match=said) as caught:
        unpacked(path)
    assert str(caught.value).isprintable()
    assert sum(one.stat().st_size for one in tmp_path.rglob("*") if one.is_file()) < 2 * path.stat().st_size + 1_000


def test_what_there_is_no_room_for_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_archive, "ROOM_BYTES_MIN", 1 << 60)
    with pytest.raises(DataError, match="make room"):
        unpacked(written(tmp_path / "b.tar"))
    assert list((tmp_path / "into").iterdir()) == []
