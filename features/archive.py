"""The archive: observations that events brought, as Parquet files beside the ingested ones, so that batch sees them.

    <features_dir>/<pipeline>/<view>/archive/2026-11-21T13/bikes.rides.p2.<first>-<last>.parquet

A folder an hour of event time; a file holds events of one Kafka partition, and its name the first and last offset
among them and the topic, shortened where that is long (`archive_files.topic_in_names`). The view is the one that
events push, the columns are the view's, and beside them where each event stood.

Every event is archived once, by where it stood and what it says (where a topic
was deleted and made again, offsets begin anew): before a row is written, the
files of its hour whose offsets could hold it are looked at, under a lock that
all writers share. So a kill between writing and committing, a rebalance or an
event sent again adds nothing. Files appear whole or not at all, flushed to disk.

Small files are merged. A merged file says in its metadata which files it
replaces; those stay for `SUPERSEDED_KEPT`, for readers that have just listed
them. A row that is there twice meanwhile is the same row, and changes nothing.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from almanac.clock import floor_hour, need_utc
from almanac.errors import FeatureError, Unavailable
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from features import parquet_files
from features.archive_files import (
    FOLDER,
    HOUR_FORMAT,
    METADATA_KEY,
    ArchiveFile,
    at_once,
    drop,
    hours,
    read,
    replaced_by,
    topic_in_names,
    written_at,
)
from features.archive_lines import EVENTS, event_columns
from features.files import locked, replacing
from features.layout import CREATED_TIMESTAMP, EVENT_TIMESTAMP, view_dir

if TYPE_CHECKING:
    import pyarrow as pa

LOCK_FILE = "write.lock"
TOPIC, PARTITION, OFFSET, TRACE = "kafka_topic", "kafka_partition", "kafka_offset", "trace"

KEPT = timedelta(days=45)
"""How long events stay: longer than a pipeline's training window is by default."""
SUPERSEDED_KEPT = timedelta(minutes=10)
"""How long files stay that a merged one replaces."""
SMALL_BYTES_MAX = 8 * 1024 * 1024
"""Size below which a file is merged with others."""
SMALL_FILES_MAX = 32
"""Small files of one hour and partition above which they are merged though the hour may still grow."""
CLOSED_AFTER = timedelta(minutes=15)
"""Time without a new file after which an hour's small files are merged, however few."""
LOCK_SECONDS_MAX = 15.0


@dataclass(frozen=True, kw_only=True)
class Archived:
    """One event on its way to the archive.

    Args:
        row: the pushed view's row: entity, `event_timestamp`, columns.
        topic, partition, offset: where the event stood.
        trace: its W3C traceparent, if it had one.
    """

    row: Mapping[str, Any]
    topic: str
    partition: int
    offset: int
    trace: str | None = None

    @property
    def hour(self) -> str:
        """Name of the folder it belongs to."""
        return floor_hour(need_utc(self.row[EVENT_TIMESTAMP])).strftime(HOUR_FORMAT)


class Archive:
    """Writes one pipeline's archive; several processes may at once.

    Args:
        folder: see the module's docstring.
        columns: the view's columns with their Arrow types, the entity first.
    """

    def __init__(self, folder: Path, columns: Mapping[str, pa.DataType]) -> None:
        import pyarrow as pa

        self.folder = folder
        self.files_finished = 0
        fields = list(columns.items())
        stamp = pa.timestamp("us", tz="UTC")
        self._schema = pa.schema(
            [
                pa.field(fields[0][0], fields[0][1], nullable=False),
                pa.field(EVENT_TIMESTAMP, stamp, nullable=False),
                pa.field(CREATED_TIMESTAMP, stamp, nullable=False),
                *(pa.field(name, kind) for name, kind in fields[1:]),
                pa.field(TOPIC, pa.string(), nullable=False),
                pa.field(PARTITION, pa.int32(), nullable=False),
                pa.field(OFFSET, pa.int64(), nullable=False),
                pa.field(TRACE, pa.string()),
            ]
        )

    def write(self, events: Sequence[Archived], now: datetime) -> int:
        """Make events durable; those that are there already are skipped. Returns how many were not.

        Args:
            events: in the order in which they are to win over each other at one event time.
            now: written as `created_timestamp`, a microsecond more for each row.

        Raises:
            Unavailable: the disk is full, or another writer held the lock too long; some of the events may be
                archived, and giving all of them again is right.
        """
        groups: dict[tuple[str, str, int], list[tuple[datetime, Archived]]] = {}
        for number, event in enumerate(events):
            of = groups.setdefault((event.hour, event.topic, event.partition), [])
            of.append((now + timedelta(microseconds=number), event))
        written = 0
        with self._locked():
            for (hour, topic, partition), found in groups.items():
                found.sort(key=lambda each: each[1].offset)
                known = self._known(hour, topic, partition, found[0][1].offset, found[-1][1].offset)
                table = self._table(found)
                news = _news(table, known)
                if len(news):
                    self._write_file(hour, topic, partition, table.take(news))
                    written += len(news)
        return written

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with locked(self.folder / LOCK_FILE, LOCK_SECONDS_MAX):
                yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what_to_do = "give its disk some space" if full else f"make {error.filename or self.folder} writable"
            raise Unavailable(
                f"the archive {self.folder} cannot be written ({error.strerror or error}): {what_to_do}"
            ) from error

    def _files(self, hour: str) -> list[ArchiveFile]:
        found = (ArchiveFile.of(path) for path in sorted((self.folder / hour).glob("*.parquet")))
        return [file for file in found if file is not None]

    def _known(self, hour: str, topic: str, partition: int, first: int, last: int) -> set[str]:
        """What the hour's files say of the events with offsets from `first` to `last`."""
        import pyarrow.compute as pc

        known: set[str] = set()
        named = topic_in_names(topic)
        for file in self._files(hour):
            if (file.topic, file.partition) == (named, partition) and file.first <= last and first <= file.last:
                table = read(file.path)
                if table is not None:
                    between = pc.and_(pc.greater_equal(table[OFFSET], first), pc.less_equal(table[OFFSET], last))
                    known.update(_said(table.filter(between)))
        return known

    def _table(self, rows: list[tuple[datetime, Archived]]) -> pa.Table:
        import pyarrow as pa

        return pa.Table.from_pylist(
            [
                {
                    **event.row,
                    CREATED_TIMESTAMP: created,
                    TOPIC: event.topic,
                    PARTITION: event.partition,
                    OFFSET: event.offset,
                    TRACE: event.trace,
                }
                for created, event in rows
            ],
            schema=self._schema,
        )

    def _write_file(self, hour: str, topic: str, partition: int, table: pa.Table) -> None:
        import pyarrow as pa

        path = self._path(hour, topic, partition, table[OFFSET][0].as_py(), table[OFFSET][-1].as_py())
        before = read(path) if path.exists() else None
        if before is not None:  # of a topic of this name that was deleted: the same offsets, other events
            table = pa.concat_tables([before, table], promote_options="default").sort_by(OFFSET)
        self._replace(path, table)

    def _path(self, hour: str, topic: str, partition: int, first: int, last: int) -> Path:
        return self.folder / hour / f"{topic_in_names(topic)}.p{partition}.{first:020d}-{last:020d}.parquet"

    def _replace(self, path: Path, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        created = not path.parent.exists()
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        self.files_finished += 1
        if created:  # the new folder's own name must be durable too
            parent = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)

    def tidy(self, now: datetime) -> dict[str, int]:
        """Merge small files, remove merged ones and hours that are too old. Returns what was done, for a report.

        Raises:
            Unavailable: as `write`; what is there stays readable.
        """
        done = {"archive_files_merged": 0, "archive_hours_dropped": 0}
        oldest = (now - KEPT).strftime(HOUR_FORMAT)
        for hour in hours(self.folder):
            with self._locked():
                if hour < oldest:
                    drop(self.folder / hour)
                    done["archive_hours_dropped"] += 1
                else:
                    done["archive_files_merged"] += self._tidy_hour(hour, now)
        return done

    def _tidy_hour(self, hour: str, now: datetime) -> int:
        for left in (self.folder / hour).glob(".*.writing"):  # nobody writes now: of a process that died
            left.unlink(missing_ok=True)
        files = self._files(hour)
        superseded = self._superseded(files)
        for name, since in superseded.items():
            if now - since >= SUPERSEDED_KEPT:
                (self.folder / hour / name).unlink(missing_ok=True)
        merged = 0
        small: dict[tuple[str, int], list[ArchiveFile]] = {}
        for file in files:
            if file.path.name not in superseded and file.path.stat().st_size < SMALL_BYTES_MAX:
                small.setdefault((file.topic, file.partition), []).append(file)
        for group in small.values():
            closed = now - max(written_at(file.path) for file in group) >= CLOSED_AFTER
            if len(group) > SMALL_FILES_MAX or (len(group) > 1 and closed):
                merged += self._merge(hour, at_once(group))
        return merged

    def _superseded(self, files: list[ArchiveFile]) -> dict[str, datetime]:
        """Names of files that others replace, and since when."""
        if len({(file.topic, file.partition) for file in files}) == len(files):
            return {}
        names = {file.path.name for file in files}
        return {name: written_at(file.path) for file in files for name in replaced_by(file.path) & names}

    def _merge(self, hour: str, group: list[ArchiveFile]) -> int:
        import numpy as np
        import pyarrow as pa

        tables = [table for file in group if (table := read(file.path)) is not None]
        if len(tables) < len(group):
            return 0  # a damaged one was put aside: the next round merges the rest
        table = pa.concat_tables(tables, promote_options="default").sort_by(OFFSET)
        offsets = table[OFFSET].to_numpy()
        once = np.diff(offsets, prepend=-1) > 0
        alike = np.flatnonzero(~once | ~np.append(once[1:], True))  # offsets that stand more than once
        once[alike] = False
        once[alike[_news(table.take(alike), set())]] = True
        table = table.take(np.flatnonzero(once))
        path = self._path(hour, group[0].topic, group[0].partition, int(offsets[0]), int(offsets[-1]))
        replaced = sorted({file.path.name for file in group} - {path.name})
        self._replace(path, table.replace_schema_metadata({METADATA_KEY: json.dumps(replaced).encode()}))
        return len(group)


def _said(table: pa.Table) -> list[str]:
    """Of each row what the event said and where it stood.

    Its place alone does not tell it from one of an earlier topic of the same name, which was deleted.
    """
    rows = table.drop_columns([CREATED_TIMESTAMP, TRACE]).to_pylist()
    return [repr(sorted((name, value) for name, value in row.items() if value is not None)) for row in rows]


def _news(table: pa.Table, known: set[str]) -> list[int]:
    """The rows, sorted by offset, that are not known, each once."""
    import numpy as np

    if not known and (np.diff(table[OFFSET].to_numpy(), prepend=-1) > 0).all():
        return list(range(table.num_rows))
    found: dict[str, int] = {}
    for number, said in enumerate(_said(table)):
        if said not in known:
            found.setdefault(said, number)
    return list(found.values())


def open_archive(pipeline: Pipeline, settings: Settings) -> Archive:
    """The archive of a pipeline with a stream.

    Raises:
        FeatureError: no view of the pipeline's FeatureService has a push source, or its name is no folder's.
        Unavailable: Feast's registry does not answer.
    """
    import pyarrow as pa
    from feast.types import from_feast_to_pyarrow_type

    from features.store import open_service, registry_errors

    folder = settings.features_dir.absolute() / pipeline.name
    entity = {pipeline.entity: pa.int64() if pipeline.partitions.key_type is int else pa.string()}
    if pipeline.lines is not None:  # what an event said, for the next ingest to fold
        return Archive(folder / EVENTS / FOLDER, entity | event_columns())
    store, service = open_service(pipeline, settings)
    with registry_errors():
        names = [projection.name for projection in service.feature_view_projections]
        pushed = [view for view in map(store.get_feature_view, names) if view.stream_source is not None]
    if not pushed:
        raise FeatureError(f"no view of {pipeline.features} has a PushSource: declare one in its Feast file")
    view = pushed[0]
    columns = entity | {field.name: from_feast_to_pyarrow_type(field.dtype) for field in view.features}
    return Archive(view_dir(settings.features_dir.absolute(), pipeline.name, view.name) / FOLDER, columns)


def archived_files(view_folder: Path, earliest: datetime | None, latest: datetime | None) -> list[str]:
    """The archive files of one view whose events could lie in a time, ends included.

    Args:
        earliest, latest: None for no limit.
    """
    first = "" if earliest is None else need_utc(earliest).strftime(HOUR_FORMAT)
    last = None if latest is None else need_utc(latest).strftime(HOUR_FORMAT)
    return [
        str(path)
        for hour in hours(view_folder / FOLDER)
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
