"""What is known of items at a midnight, from the lines before it: numbers, and which items go together.

DuckDB over the files of lines. All sums are of whole numbers, and what could tie
is ordered by key, so that equal lines give equal rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from almanac.clock import DAY_MICROSECONDS, MICROSECOND, micros_of
from almanac.interactions import Interactions
from almanac.ranking_declared import ANY_ITEM
from features.interactions.history import POPULAR_MAX, TOGETHER_MAX
from features.parquet_files import relation

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

TOGETHER_DAYS = 90
"""Days before a night of which baskets say what goes together."""
TOGETHER_BASKETS_MIN = 2
"""Baskets that must have held two items for them to go together."""
BASKET_ITEMS_MAX = 100
"""A larger basket says nothing of what goes together: it is a warehouse's."""
MEMORY = "2GB"
"""What DuckDB may hold; the rest lies in a temporary file."""


class Nights:
    """Item rows at midnights, from files of lines; one connection for several.

    Args:
        files: of lines, all that may hold lines before the nights that are asked for.
        temporary: where DuckDB puts what it cannot hold.
    """

    def __init__(self, files: Sequence[Path], temporary: Path) -> None:
        import duckdb

        config: dict[str, str | bool | int | float | list[str]]
        config = {"memory_limit": MEMORY, "temp_directory": str(temporary), "preserve_insertion_order": False}
        self._connection: duckdb.DuckDBPyConnection = duckdb.connect(":memory:", config=config)
        # No line is of any item; one that was archived as that must not be what is popular.
        self._connection.execute(
            f"CREATE VIEW read AS SELECT * FROM {relation(files)} "  # noqa: S608
            f"WHERE quantity > 0 AND item <> '{ANY_ITEM}'"
        )
        self._connection.execute(
            "CREATE TABLE names AS SELECT name, row_number() OVER (ORDER BY name)::INTEGER AS item "
            "FROM (SELECT DISTINCT item AS name FROM read)"
        )
        # A basket has an item once; its moment and its entity are the event's.
        self._connection.execute(
            "CREATE TABLE lines AS SELECT names.item AS item, event, any_value(hash(entity)) AS who, "
            'any_value(epoch_us("at")) AS moment, max(price) AS price '
            "FROM read JOIN names ON name = read.item GROUP BY names.item, event"
        )

    def close(self) -> None:
        """Give back what DuckDB holds."""
        self._connection.close()

    def stats(self, night: datetime, declared: Interactions) -> pa.Table:
        """The columns of `STATS` for each item that was ever taken before a midnight: `item`, then these."""
        end = micros_of(night)
        query = """
            WITH before AS (SELECT * FROM lines WHERE moment < $1),
            newest AS (SELECT item, max(moment) AS last, min(moment) AS first FROM before GROUP BY item),
            paid AS (
                SELECT item, max(price) AS price FROM before JOIN newest USING (item) WHERE moment = last GROUP BY item
            ),
            recent AS (
                SELECT item,
                    count(*) FILTER (moment >= $1 - 7 * $2) AS sold_7d,
                    count(*) FILTER (moment >= $1 - 30 * $2) AS sold_30d,
                    count(*) AS sold_90d,
                    count(DISTINCT who) FILTER (moment >= $1 - 30 * $2) AS buyers_30d
                FROM before WHERE moment >= $1 - 90 * $2 GROUP BY item
            )
            SELECT name AS item,
                coalesce(sold_7d, 0)::FLOAT AS sold_7d,
                coalesce(sold_30d, 0)::FLOAT AS sold_30d,
                coalesce(sold_90d, 0)::FLOAT AS sold_90d,
                coalesce(buyers_30d, 0)::FLOAT AS buyers_30d,
                price::FLOAT AS price,
                (($1 - first) / $2::DOUBLE)::FLOAT AS days_on_sale,
                (($1 - last) / $2::DOUBLE)::FLOAT AS days_since_sold,
                (last >= $1 - $3)::INTEGER::FLOAT AS available
            FROM newest JOIN paid USING (item) JOIN names USING (item) LEFT JOIN recent USING (item) ORDER BY name
        """
        within = declared.available_for // MICROSECOND
        return self._asked(query, [end, DAY_MICROSECONDS, within])

    def newest(self, night: datetime) -> int:
        """The moment of the newest line before a midnight, microseconds since 1970."""
        query = "SELECT max(moment) AS newest FROM lines WHERE moment < $1"
        (row,) = self._asked(query, [micros_of(night)]).to_pylist()
        return int(row["newest"])

    def popular(self, stats: pa.Table) -> pa.Table:
        """What goes together with any item: the one row of `ANY_ITEM`, with the columns of `TOGETHER`."""
        import pyarrow as pa

        self._connection.register("stats", stats)
        query = """
            SELECT item, greatest(buyers_30d, 0.5) AS weight FROM stats WHERE available > 0
            ORDER BY buyers_30d DESC, sold_30d DESC, sold_90d DESC, item LIMIT $1
        """
        found = self._asked(query, [POPULAR_MAX])
        self._connection.unregister("stats")
        weights = [weight / max(found["weight"].to_pylist(), default=1) for weight in found["weight"].to_pylist()]
        return pa.table(
            {
                "item": pa.array([ANY_ITEM]),
                "together_items": pa.array([found["item"].to_pylist()], pa.list_(pa.string())),
                "together_weights": pa.array([weights], pa.list_(pa.float32())),
            }
        )

    def together(self, night: datetime) -> pa.Table:
        """The items that go together with each item, closest first: `item` and the columns of `TOGETHER`.

        How close is the share of their baskets that two items have in common: the number of these, by the
        geometric mean of either's.
        """
        query = f"""
            WITH basket AS (
                SELECT event, item FROM lines WHERE moment < $1 AND moment >= $1 - {TOGETHER_DAYS} * $2
                QUALIFY count(*) OVER (PARTITION BY event) BETWEEN 2 AND {BASKET_ITEMS_MAX}
            ),
            counts AS (SELECT item, count(*) AS baskets FROM basket GROUP BY item),
            pairs AS (
                SELECT a.item AS one, b.item AS other, count(*) AS common
                FROM basket a JOIN basket b ON a.event = b.event AND a.item <> b.item
                GROUP BY ALL HAVING common >= {TOGETHER_BASKETS_MIN}
            ),
            weighed AS (
                SELECT one, other, (common / sqrt(c.baskets * d.baskets::DOUBLE))::FLOAT AS weight
                FROM pairs JOIN counts c ON c.item = one JOIN counts d ON d.item = other
                QUALIFY row_number() OVER (PARTITION BY one ORDER BY weight DESC, other) <= {TOGETHER_MAX}
            )
            SELECT n.name AS item, list(m.name ORDER BY weight DESC, other) AS together_items,
                list(weight ORDER BY weight DESC, other) AS together_weights
            FROM weighed JOIN names n ON n.item = one JOIN names m ON m.item = other
            GROUP BY n.name ORDER BY n.name
        """  # noqa: S608 - numbers of our own
        return self._asked(query, [micros_of(night), DAY_MICROSECONDS])

    def _asked(self, query: str, parameters: list[Any]) -> pa.Table:
        return self._connection.sql(query, params=parameters).to_arrow_table()


@contextmanager
def nights(files: Sequence[Path], temporary: Path) -> Iterator[Nights]:
    """`Nights`, closed after the block."""
    found = Nights(files, temporary)
    try:
        yield found
    finally:
        found.close()
