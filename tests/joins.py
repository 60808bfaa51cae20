"""Small tables and views for tests of the point-in-time engine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from features.asof import Rows, View

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")


def rows_of(table: pa.Table) -> Rows:
    """The rows of a table in memory."""
    return Rows(schema=table.schema, read=lambda wanted: table.select(list(wanted.columns)).to_batches())


def at(number: float) -> datetime:
    """So many seconds after `BEGAN`."""
    return BEGAN + timedelta(seconds=number)


def one_view(table: pa.Table, **changes: Any) -> View:
    """A view with the feature x by the key k."""
    shape = {"keys": {"k": "k"}, "timestamp": "ts", "features": {"x": "x"}}
    return View(**{"name": "v", "source": rows_of(table), **shape, **changes})


def entities_of(keys: Any, moments: Any) -> pa.Table:
    """Entity rows that ask by the key k."""
    return pa.table({"k": keys, "event_timestamp": moments})
