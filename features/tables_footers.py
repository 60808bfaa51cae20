"""What the footers of a view's Parquet files tell of its rows, so that these need not be read.

None where they do not tell: no statistics, another type, or a row group on both sides of a moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from almanac.clock import micros_of
from features.asof.footers import Footer, footer_of
from features.asof.times import GREATEST, LEAST

EXACT = ("ms", "us")
"""Units of a time that microseconds hold as it is."""


def newest(files: Sequence[str], view: str, moment: str, until: datetime) -> int | None:
    """The newest time of a column at or before `until`, in microseconds since 1970.

    Raises:
        FeatureError: a file is no Parquet.
    """
    limit = micros_of(until)
    best = LEAST
    for footer in _footers(files, view):
        kind = footer.schema.field(moment).type
        if getattr(kind, "tz", None) is None or kind.unit not in EXACT:
            return None
        known = footer.limits(moment, "us")
        if known is None:
            return None
        least, greatest = known
        held = footer.rows > 0
        if (held & ((greatest == GREATEST) | ((least <= limit) & (greatest > limit)))).any():
            return None
        before = greatest[held & (greatest <= limit)]
        best = max(best, int(before.max()) if len(before) else LEAST)
    return None if best == LEAST else best


def complete(files: Sequence[str], view: str, column: str) -> bool:
    """Whether the footers say of every row group that no value of a column is null.

    Raises:
        FeatureError: a file is no Parquet.
    """
    return all(_complete(footer, column) for footer in _footers(files, view))


def _footers(files: Sequence[str], view: str) -> list[Footer]:
    return [footer_of(file, None, view) for file in files]


def _complete(footer: Footer, column: str) -> bool:
    metadata: Any = footer.metadata
    place = footer.schema.get_field_index(column)
    if place < 0 or metadata.num_columns != len(footer.schema):  # a nested column is several
        return False
    found = (metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups))
    return all(one is not None and one.has_null_count and one.null_count == 0 for one in found)
