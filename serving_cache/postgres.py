"""`PostgresStore`: the record of every generation and overlay.

Synchronous, for batch steps, sinks, the reconciler and the command line; the
lookup service reads the same tables by its own connections (`layout.py` names them).
"""

from __future__ import annotations

from almanac.closing import Closing
from serving_cache.postgres_client import Client
from serving_cache.postgres_entities import Entities
from serving_cache.postgres_publish import Publishing
from serving_cache.postgres_reading import Blocks, Reading
from serving_cache.postgres_retention import Retention
from serving_cache.records import Attempt, GenerationStart, StagedPartition

__all__ = ["Attempt", "GenerationStart", "PostgresStore", "StagedPartition"]


class PostgresStore(Blocks, Publishing, Reading, Entities, Retention, Closing):
    """The generation store in Postgres, over one connection that opens when first needed.

    Every method raises `Unavailable` when Postgres does not answer in time, and
    `UsageError` when the database was not migrated.

    Args:
        url: postgresql:// URL.

    Raises:
        UsageError: the URL cannot be read.
    """

    def __init__(self, url: str) -> None:
        self._client = Client(url)

    def close(self) -> None:
        """Close the connection; using the store again opens another."""
        self._client.close()

    @property
    def where(self) -> str:
        """host:port/database, for messages."""
        return self._client.where
