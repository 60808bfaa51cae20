"""Reading the archive of events (`features.archive` writes it): its files, and who has a newer event."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from almanac.clock import need_utc
from features import parquet_files
from features.layout import EVENT_TIMESTAMP

FOLDER = "archive"
HOUR_FORMAT = "%Y-%m-%dT%H"
HOUR_NAME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}")


def archived_files(view_folder: Path, earliest: datetime | None, latest: datetime | None) -> list[str]:
    """The archive files of one view whose events could lie in a time, ends included.

    Args:
        earliest, latest: None for no limit.
    """
    first = "" if earliest is None else need_utc(earliest).strftime(HOUR_FORMAT)
    last = None if latest is None else need_utc(latest).strftime(HOUR_FORMAT)
    return [
        str(path)
        for hour in hours_of(view_folder / FOLDER)
        if first <= hour and (last is None or hour <= last)
        for path in sorted((view_folder / FOLDER / hour).glob("*.parquet"))
    ]


def newest_events(pipeline_folder: Path, entity: str, after: datetime, until: datetime) -> dict[Any, datetime]:
    """The time of each entity's newest archived event within a time, of those that have one.

    Args:
        pipeline_folder: the folder of the pipeline's views.
        entity: name of the entity's column.
        after: excluded.
        until: included.
    """
    import pyarrow.compute as pc

    found: dict[Any, datetime] = {}
    for folder in sorted(pipeline_folder.glob(f"*/{FOLDER}")):
        for path in archived_files(folder.parent, after, until):
            table = parquet_files.read(path, [entity, EVENT_TIMESTAMP])
            moments = table[EVENT_TIMESTAMP]
            table = table.filter(pc.and_(pc.greater(moments, after), pc.less_equal(moments, until)))
            for row in table.group_by(entity).aggregate([(EVENT_TIMESTAMP, "max")]).to_pylist():
                moment = row[f"{EVENT_TIMESTAMP}_max"]
                found[row[entity]] = max(moment, found.get(row[entity], moment))
    return found


def hours_of(folder: Path) -> list[str]:
    """The hours that an archive has files of, sorted; none where it is not there."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if HOUR_NAME.fullmatch(entry.name))
    except FileNotFoundError:
        return []
