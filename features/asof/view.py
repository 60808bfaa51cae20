"""What the point-in-time engine is told: a view, and where its rows are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a `Rows` source is asked for. It may give more rows than these, never fewer.

    Args:
        columns: to read, by their names in the source.
        earliest: rows before it do not matter; aware, or None for no limit.
        latest: rows after it do not matter; aware, or None for no limit.
    """

    columns: tuple[str, ...]
    earliest: datetime | None
    latest: datetime | None


@dataclass(frozen=True, kw_only=True)
class Files:
    """Parquet files: paths of files, of folders (their `*.parquet`, at any depth), or patterns.

    Args:
        paths: as text; with a `filesystem` they are paths of that one, and no patterns.
        filesystem: where they lie, if not on this machine.
    """

    paths: tuple[str, ...]
    filesystem: pyarrow.fs.FileSystem | None = None


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Anything else that gives rows: a table, a database.

    Args:
        schema: of the rows, before columns are chosen.
        read: gives record batches with `Wanted.columns`. What does not fit in memory is put into a temporary file.
    """

    schema: pa.Schema
    read: Callable[[Wanted], Iterable[pa.RecordBatch]]


@dataclass(frozen=True, kw_only=True)
class View:
    """A feature view as the engine sees it.

    Args:
        name: for messages.
        source: where its rows are.
        keys: column of the source -> column of the entities; none: every row is about every entity.
        timestamp: the source's column of event times. Without a time zone they count as UTC.
        features: column of the source -> column of the result.
        created: the source's column that decides between rows of one key and event time; none (or null) loses.
            Of rows that are alike in this too, the one that comes last in its source counts.
        ttl: a row older than this at the moment is not known any more; None or zero: rows are known for ever.
        kinds: column of the source -> value type, by Feast's name, that its values are given as (`declared_types`);
            columns without one are given as the first file has them.
    """

    name: str
    source: Files | Rows
    keys: Mapping[str, str]
    timestamp: str
    features: Mapping[str, str]
    created: str | None = None
    ttl: timedelta | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def times(self) -> tuple[str, ...]:
        """The columns of event times and, if there is one, of created times."""
        return (self.timestamp, *([self.created] if self.created else []))

    @property
    def ordering(self) -> tuple[str, ...]:
        """The columns of the source that decide which row is meant, each once."""
        return tuple(dict.fromkeys([*self.keys, *self.times]))

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of the source that matter, each once."""
        return tuple(dict.fromkeys([*self.ordering, *self.features]))
