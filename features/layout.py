"""Where offline features lie: one folder a view, one Parquet file a day (static views: one in all).

    <features_dir>/<pipeline>/<view>/2026-11-20.parquet

Shared by those who write the files (`features.ingest`) and by the Feast
definitions that name them (`features/repo/`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from almanac.errors import FeatureError
from almanac.settings import Settings, load_settings
from features import parquet_files

EVENT_TIMESTAMP = "event_timestamp"
CREATED_TIMESTAMP = "created_timestamp"
MADE_FROM = b"almanac"
"""Key of a file's metadata: JSON of what its rows were made from."""
STATIC_SINCE = datetime(2000, 1, 1, tzinfo=UTC)
"""Event time of rows that hold at all times, such as positions."""

_VIEW = re.compile(r"\w[\w.-]{0,99}", re.ASCII)
_applying: ContextVar[Settings | None] = ContextVar("_applying", default=None)


def view_dir(features_dir: Path, pipeline: str, view: str) -> Path:
    """The folder of one view.

    Raises:
        FeatureError: its name, as a Feast file or the registry has it, would name another folder, or several.
    """
    if not _VIEW.fullmatch(view):
        raise FeatureError(
            f"view {view[:40]!r} cannot be the name of a folder: give it letters, digits, `_`, `-` or `.`, at most 100"
        )
    return features_dir / pipeline / view


def day_file(folder: Path, day: date) -> Path:
    """The file of one day, in UTC."""
    return folder / f"{day:%Y-%m-%d}.parquet"


def static_file(folder: Path) -> Path:
    """The one file of a static view."""
    return folder / "static.parquet"


@contextmanager
def definitions_for(settings: Settings) -> Iterator[None]:
    """While this is held, `source_path` speaks of these settings instead of the process's own."""
    token = _applying.set(settings)
    try:
        yield
    finally:
        _applying.reset(token)


def made_from(path: Path) -> dict[str, Any]:
    """What a feature file says it was made from; nothing when it is absent or damaged, so that it is made again."""
    import pyarrow as pa

    try:
        found: dict[str, Any] = json.loads((parquet_files.schema(path).metadata or {})[MADE_FROM])
    except (FileNotFoundError, KeyError, ValueError, pa.ArrowException):
        return {}
    return found


def source_path(pipeline: str, view: str) -> str:
    """What a Feast FileSource reads: all files of a view."""
    settings = _applying.get() or load_settings()
    return str(view_dir(settings.features_dir.absolute(), pipeline, view) / "*.parquet")
