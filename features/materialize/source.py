"""What a materialization reads: a feature view's definition, its files, and whether they hold what the view says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from almanac.clock import at_micros
from almanac.errors import FeatureError
from almanac.partitioning import Grid, Partitioning
from features import asof
from features.archived import archived_files
from features.materialize.plan import File, Reading
from features.own_files import FILES_MAX, columns_of, files_of, folder_of, literal, quoted
from features.parquet_files import relation
from features.schemas import Needed, check_schema

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from feast import FeatureView

KEYS_SHOWN_MAX = 3
KEY_BYTES_MAX = 256
"""Of a text key, as in the declaration."""
Keys = tuple[int, int]
"""The least and the greatest of neighbouring whole-number keys."""


class Feature(msgspec.Struct, frozen=True):
    """A feature: its name, its column in the files, and Feast's type."""

    name: str
    column: str
    type: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A feature view as it is materialized.

    Args:
        view: name; in the online store `online_view`, which has Feast's version of the view in it if that is on.
        path: of its Parquet files, which may hold a `*`.
        key: join key, and `key_type`, Feast's type of it.
        key_column, moment, created: columns of the entity, the event time and, if there is one, the writing time.
        ttl: for how long a row may be used; None for ever.
        pushed: whether events write it, too.
    """

    project: str
    view: str
    online_view: str
    path: str
    key: str
    key_type: str
    key_column: str
    moment: str
    created: str | None
    features: tuple[Feature, ...]
    ttl: timedelta | None
    pushed: bool

    @property
    def definition(self) -> str:
        """A fingerprint of all this: another one means that the view was changed."""
        return hashlib.blake2b(repr(self).encode(), digest_size=12).hexdigest()

    def files(self, since: datetime, until: datetime) -> list[File]:
        """The view's files that there are, and those of the archive beside them that can hold rows of a time.

        Raises:
            FeatureError: there is none, or too many.
        """
        found = [*files_of(self.path, self.view), *archived_files(folder_of(self.path), since, until)]
        if len(found) > FILES_MAX:
            raise FeatureError(f"view {self.view} reads {len(found)} files, at most {FILES_MAX}: write larger ones")
        return [file for path in found if (file := _file(path)) is not None]

    def as_view(self, files: Sequence[str]) -> asof.View:
        """These files as the point-in-time engine reads them."""
        return asof.View(
            name=self.view,
            source=asof.Files(paths=tuple(files)),
            keys={self.key_column: self.key},
            timestamp=self.moment,
            created=self.created,
            features={feature.column: feature.name for feature in self.features},
            ttl=self.ttl,
            kinds={feature.column: feature.type for feature in self.features},
        )


def _file(path: str) -> File | None:
    """A file and when it was changed; None if it went meanwhile: what replaced it is listed, or comes next time."""
    try:
        changed = os.stat(path).st_ctime_ns
    except FileNotFoundError:
        return None
    return File(path, at_micros(changed // 1_000))


def source_of(view: FeatureView, project: str, *, versioned: bool) -> Source:
    """What a feature view says of itself.

    Args:
        versioned: whether the online store keeps Feast's versions of a view apart.

    Raises:
        FeatureError: it does not read Parquet files, or has not one join key.
    """
    from feast.infra.online_stores.helpers import compute_versioned_name

    source = view.batch_source
    path = str(getattr(source, "path", "") or "")
    if type(source).__name__ != "FileSource" or "://" in path:
        raise FeatureError(f"view {view.name} reads a {type(source).__name__} {path}: give it a FileSource of Parquet")
    if len(view.join_keys) != 1:
        raise FeatureError(f"view {view.name} has {len(view.join_keys)} join keys, expected one: give it one entity")
    if not source.timestamp_field:
        raise FeatureError(
            f"view {view.name}: its FileSource names no timestamp_field: give it the event time's column"
        )
    column_of = columns_of(source)
    created = source.created_timestamp_column
    key = view.entity_columns[0]
    return Source(
        project=project,
        view=view.name,
        online_view=compute_versioned_name(view, versioned),
        path=path,
        key=key.name,
        key_type=key.dtype.to_value_type().name,
        key_column=column_of.get(key.name, key.name),
        moment=column_of.get(source.timestamp_field, source.timestamp_field),
        created=column_of.get(created, created) or None,
        features=tuple(
            Feature(field.name, column_of.get(field.name, field.name), field.dtype.to_value_type().name)
            for field in view.features
        ),
        ttl=view.ttl or None,
        pushed=view.stream_source is not None,
    )


def check_files(source: Source, files: Sequence[str]) -> None:
    """Read the schema of files, and refuse one that does not hold what the view says.

    Raises:
        FeatureError: names file and column.
    """
    needed = Needed(
        view=source.view,
        key=source.key_column,
        whole_keys=source.key_type != "STRING",
        moments=(source.moment, *([source.created] if source.created else [])),
        features={feature.column: feature.type for feature in source.features},
    )
    for file in files:
        check_schema(file, needed)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is in the rows that are to be read: how many, and about how many entities."""

    rows: int
    entities: int


def examine(
    duckdb: duckdb.DuckDBPyConnection, source: Source, partitions: Partitioning, reading: Reading, own: Keys | None
) -> Found:
    """Count the rows of a reading, and refuse those that cannot be told apart; only keys and times are read.

    Args:
        duckdb: a connection to any database; nothing is put into it.
        own: look at these keys alone.

    Raises:
        FeatureError: a row without a key or event time, a key that no entity has, two rows of one key and event time
            of which neither is the later written one, or a file that cannot be read.
    """
    key, moment = quoted(source.key_column), quoted(source.moment)
    if isinstance(partitions, Grid):
        foreign, valid = f"{key} < 0 OR {key} >= {partitions.cells}", f"0 to {partitions.cells - 1}"
    elif source.key_type == "STRING":
        foreign = f"strlen({key}) NOT BETWEEN 1 AND {KEY_BYTES_MAX} OR contains({key}, chr(0))"
        valid = f"1 to {KEY_BYTES_MAX} bytes without a zero"
    else:
        foreign, valid = "false", ""
    usable = f"{moment} BETWEEN {literal(reading.start)} AND {literal(reading.end)}"
    if own is not None:
        usable += f" AND {key} BETWEEN {own[0]} AND {own[1]}"
    with _asking(source), duckdb.cursor() as connection:
        rows = relation(reading.files, (source.key_column, source.moment))
        counted: Any = connection.execute(
            f"SELECT count(*), approx_count_distinct({key}), count(*) FILTER ({key} IS NULL), "  # noqa: S608
            f"any_value({key}) FILTER ({foreign}) FROM {rows} WHERE {usable}"
        ).fetchone()
        count, entities, keyless, stranger = counted
        if keyless:
            raise FeatureError(
                f"{source.path}: {keyless:,} rows of view {source.view} have no {source.key_column}: "
                "drop them or fill it in"
            )
        if stranger is not None:
            raise FeatureError(
                f"{source.path}: view {source.view} has a row of {source.key_column} {str(stranger)[:40]!r}, "
                f"which is no entity ({valid}): correct the rows"
            )
        twice = (
            []
            if source.created or not count
            else connection.execute(
                f"SELECT {key} FROM {rows} WHERE {usable} GROUP BY {key}, {moment} HAVING count(*) > 1 "  # noqa: S608
                f"LIMIT {KEYS_SHOWN_MAX}"
            ).fetchall()
        )
    if twice:
        raise FeatureError(
            f"{source.path}: view {source.view} has two rows of one {source.key_column} and {source.moment} "
            f"({', '.join(str(row[0]) for row in twice)}): drop the duplicates, or name a created_timestamp_column "
            "that says which is newer"
        )
    return Found(rows=count, entities=min(entities, count))


def newest(source: Source, reading: Reading, own: Keys | None) -> Iterator[pa.RecordBatch]:
    """The newest row of each entity in a reading: key and features by the view's names, times by the files'.

    Args:
        own: the entities of these keys alone.

    Raises:
        FeatureError: a file cannot be read.
    """
    import duckdb
    import pyarrow as pa

    try:
        keys = None if own is None else {source.key_column: own}
        yield from asof.latest(source.as_view(reading.files), reading.start, reading.end, keys)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise _unreadable(source, error) from error


@contextmanager
def _asking(source: Source) -> Iterator[None]:
    import duckdb
    import pyarrow as pa

    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise _unreadable(source, error) from error


def _unreadable(source: Source, error: Exception) -> FeatureError:
    reason = (str(error).splitlines() or ["unreadable"])[0]
    return FeatureError(f"{source.path} of view {source.view} cannot be read ({reason}): write it again")


def keys_between(partitions: Partitioning, first: int, last: int) -> Keys | None:
    """What the keys of some neighbouring partitions lie between, so that no file is read for other keys.

    None for buckets, whose keys lie anywhere.
    """
    if not isinstance(partitions, Grid):
        return None
    top, bottom = first // partitions.tile_cols, last // partitions.tile_cols + 1
    return top * partitions.tile * partitions.cols, min(bottom * partitions.tile, partitions.rows) * partitions.cols - 1


def partitions_of(partitions: Partitioning, keys: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The partition of each key."""
    if isinstance(partitions, Grid):
        rows, cols = np.divmod(keys.to_numpy(zero_copy_only=False).astype(np.int64), partitions.cols)
        return np.asarray((rows // partitions.tile) * partitions.tile_cols + cols // partitions.tile, dtype=np.int64)
    return np.fromiter((partitions.partition_of(key) for key in keys.to_pylist()), np.int64, len(keys))
