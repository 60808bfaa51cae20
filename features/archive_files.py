"""The archive's files: their names, what a merged one says of those it replaces, and a damaged one put aside."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from features import parquet_files

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "archive"
HOUR_FORMAT = "%Y-%m-%dT%H"
HOUR_NAME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}")
TOPIC_CHARACTERS_MAX = 100
"""Length of a topic's name above which files have a part of it and its hash: a file's name has 255 bytes at most."""
_TOPIC_SHOWN = 60
_TOPIC = re.compile(rf"[A-Za-z0-9._-]{{1,{TOPIC_CHARACTERS_MAX}}}|[A-Za-z0-9._-]{{0,{_TOPIC_SHOWN}}}~[0-9a-f]{{32}}")
FILE_NAME = re.compile(r"(?P<topic>[A-Za-z0-9._~-]+)\.p(?P<partition>\d+)\.(?P<first>\d{20})-(?P<last>\d{20})\.parquet")
METADATA_KEY = b"almanac.replaces"
MERGED_BYTES_MAX = 64 * 1024 * 1024
"""Bytes of files merged into one at a time: bounds its memory."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ArchiveFile:
    """One archive file, by its name, its topic as `topic_in_names` says it."""

    path: Path
    topic: str
    partition: int
    first: int
    last: int

    @classmethod
    def of(cls, path: Path) -> ArchiveFile | None:
        """What a name says; None if it is no name of an archive file."""
        found = FILE_NAME.fullmatch(path.name)
        if found is None:
            return None
        numbers = {name: int(found[name]) for name in ("partition", "first", "last")}
        return cls(path=path, topic=topic_in_names(found["topic"]), **numbers)


def topic_in_names(topic: str) -> str:
    """How names of files say a topic: as it is if that is short, otherwise its beginning and its hash.

    Whatever the text, it is part of one name of at most `TOPIC_CHARACTERS_MAX` bytes, and another text's is another.
    What it returns stays as it is; the sign before the hash stands in no topic's name.
    """
    if _TOPIC.fullmatch(topic):
        return topic
    digest = hashlib.blake2b(topic.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{re.sub('[^A-Za-z0-9._-]', '_', topic[:_TOPIC_SHOWN])}~{digest}"


def hours(folder: Path) -> list[str]:
    """Names of the folders of hours below the archive's, in order; none where there is no archive."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if HOUR_NAME.fullmatch(entry.name))
    except FileNotFoundError:
        return []


def at_once(group: list[ArchiveFile]) -> list[ArchiveFile]:
    """The first files of a group, two at least, up to `MERGED_BYTES_MAX`."""
    size, taken = 0, list[ArchiveFile]()
    for file in group:
        size += file.path.stat().st_size
        if len(taken) >= 2 and size > MERGED_BYTES_MAX:
            break
        taken.append(file)
    return taken


def read(path: Path, columns: list[str] | None = None) -> pa.Table | None:
    """A file of the archive; one that is damaged is put aside under another name, and said."""
    import pyarrow as pa

    try:
        return parquet_files.read(path, columns)
    except pa.ArrowInvalid as error:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        log.warning("%s is damaged (%s): kept as %s, its events are missing", path, error, aside.name)
        return None


def written_at(path: Path) -> datetime:
    """When a file was written."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def replaced_by(path: Path) -> set[str]:
    """Names of the files that a merged one replaces."""
    import pyarrow as pa

    try:
        return set(json.loads((parquet_files.schema(path).metadata or {}).get(METADATA_KEY, b"[]")))
    except (pa.ArrowInvalid, ValueError):
        return set()


def drop(folder: Path) -> None:
    """Remove a folder of an hour with its files."""
    for path in folder.iterdir():
        path.unlink(missing_ok=True)
    folder.rmdir()
