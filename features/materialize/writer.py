"""Newest rows into the online store: packed from Arrow, whole columns at a time, written newer-wins by one script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from features.materialize.source import Source
from features.packed.codec import Column, Layout
from features.packed.keys import Keys
from features.packed.store import Writes

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Batch:
    """Rows that are ready to be written."""

    source: Source
    keys: Sequence[bytes]
    values: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.keys)


class Writer(Protocol):
    """Where rows are written to."""

    @property
    def client(self) -> Any:
        """The connection to Redis, and its time limits."""

    def pack(self, source: Source, rows: pa.RecordBatch) -> Batch:
        """Make rows ready: key and features by the view's names, times by the files'."""

    def put(self, batch: Batch) -> int:
        """Send rows, each to be written if it is newer than what is there; returns how many of earlier ones were."""

    def settle(self) -> int:
        """Wait until all rows that were sent are written or not; returns how many of the last ones were."""


@lru_cache(maxsize=256)
def layout_of(source: Source) -> Layout:
    """The layout of a view's values."""
    columns = tuple(Column(feature.name, feature.type) for feature in source.features)
    return Layout(project=source.project, view=source.online_view, columns=columns)


@lru_cache(maxsize=256)
def keys_of(source: Source) -> Keys:
    """How a view's entities are named."""
    return Keys(project=source.project, view=source.online_view, join_keys=(Column(source.key, source.key_type),))


class PackedWriter:
    """Packed values.

    Where neither event time nor creation decides, a row that is written again replaces what is there, unless events
    write the view, too: a view that only files write gets what is in the files now.

    Args:
        client: a Redis of redis-py, or a RedisCluster.
        ties_replace: a row that is written again replaces what is there also where events write the view.
        expire_seconds: after which Redis itself forgets a row unless its entity is sent again; None keeps it.
    """

    def __init__(self, client: Any, *, ties_replace: bool = False, expire_seconds: float | None = None) -> None:
        self.client = client
        self._writes: tuple[Source, Writes] | None = None
        self._ties_replace = ties_replace
        self._expire_seconds = expire_seconds

    def pack(self, source: Source, rows: pa.RecordBatch) -> Batch:
        """Pack rows.

        Raises:
            FeatureError: a column holds what its type cannot; says which.
        """
        import pyarrow as pa

        from features.packed.arrow import encode, micros

        table = pa.Table.from_batches([rows])
        created = _created(rows[source.created]) if source.created else None
        values = encode(layout_of(source), table, micros(rows[source.moment], source.view), created)
        key = rows[source.key]
        names: Any = key.to_pylist() if source.key_type == "STRING" else key.to_numpy(zero_copy_only=False)
        return Batch(source, keys_of(source).of(names), values)

    def put(self, batch: Batch) -> int:
        """Send packed rows.

        Raises:
            FeatureError: a row that is there was packed by a newer version.
        """
        written = 0
        if self._writes is not None and self._writes[0] != batch.source:
            written = self.settle()
        if self._writes is None:
            self._writes = batch.source, self._begun(batch.source)
        with self._let_go_of_by_errors():
            return written + self._writes[1].put(batch.keys, batch.values)

    def settle(self) -> int:
        """Wait for what was sent; raises as `put`."""
        if self._writes is None:
            return 0
        with self._let_go_of_by_errors():
            written = self._writes[1].end()
        self._let_go()
        return written

    def _begun(self, source: Source) -> Writes:
        return Writes(
            self.client,
            layout_of(source),
            ties_replace=self._ties_replace or not source.pushed,
            expire_seconds=self._expire_seconds,
        )

    @contextmanager
    def _let_go_of_by_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._let_go()
            raise

    def _let_go(self) -> None:
        if self._writes is not None:
            self._writes[1].close()
            self._writes = None


def _created(column: pa.Array) -> Any:
    """When rows were created, in microseconds since 1970; 0 where that is not known."""
    import pyarrow as pa

    known = column.cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.int64()).fill_null(0)
    return known.to_numpy(zero_copy_only=False)
