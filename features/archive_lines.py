"""Events with lines in the archive: what each said, a list a column, beside the views' files and not among them.

    <features_dir>/<pipeline>/events/archive/2026-11-21T13/…

Their view holds histories, which the next ingest makes anew: it folds these events where they belong, those that the
source has as well only once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

EVENTS = "events"
"""Folder of the events of a pipeline, beside those of its views."""
ITEMS, QUANTITIES, PRICES = "items", "quantities", "prices"


def event_columns() -> dict[str, pa.DataType]:
    """The columns of an event besides its entity and moment."""
    import pyarrow as pa

    return {ITEMS: pa.list_(pa.string()), QUANTITIES: pa.list_(pa.float64()), PRICES: pa.list_(pa.float64())}


def archived_lines(lines: Sequence[tuple[str, float, float]]) -> Mapping[str, Any]:
    """Lines, each an item, a quantity and a price, as the archive has them."""
    return {name: [line[at] for line in lines] for at, name in enumerate((ITEMS, QUANTITIES, PRICES))}
