"""Writes newest rows into the online store, through Feast's own write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from features.materialize_source import Source

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore


@dataclass(frozen=True)
class Batch:
    """Rows that are ready to be written."""

    source: Source
    count: int
    rows: Any


class Writer:
    """The online store of one Feast store."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store

    @property
    def client(self) -> Any:
        """The connection to Redis, and its time limits."""
        provider = self._store._get_provider()
        return provider.online_store._get_client(self._store.config.online_store)

    def pack(self, source: Source, rows: pa.RecordBatch) -> Batch:
        """Make rows ready."""
        return Batch(source, rows.num_rows, rows.to_pandas())

    def put(self, batch: Batch) -> int:
        """Write rows, each only if it is newer; returns how many were."""
        self._store.write_to_online_store(batch.source.view, batch.rows)
        return batch.count

    def close(self) -> None:
        """Give the connections back."""
