"""What was served to a sample of entities, kept until it can be compared with what was observed; and the errors found.

Batch predictions are logged here once their generation is published; overlays
by a trigger (migration 0003), in the transaction in which Postgres accepts
them, if a reader would have been given them: of the current generation's model,
and not older than it. Of each entity, source and model the log keeps the first
prediction of each hour of as_of, so that it is bounded however often events come.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from psycopg import sql

from almanac.clock import need_utc
from almanac.closing import Closing
from almanac.pipeline import Pipeline
from almanac.quality import SUMS, Sums, horizons, sample_threshold
from serving_cache.layout import child_name
from serving_cache.postgres_client import Client, Connection

LOG_MARGIN = timedelta(days=1)
"""Kept beyond the longest horizon and `usable_for`, for outcomes that are computed late."""
OUTCOMES_KEPT = timedelta(days=400)
DUE_ROWS_MAX = 100_000
"""Predictions of one output that may be due in one hour: each sampled entity's, of every source and some models."""

# md5 as in almanac.quality.is_sampled. A generation that was archived or rejected was served to nobody.
_LOG_GENERATION = sql.SQL(
    "INSERT INTO prediction_log (pipeline, entity, source, model, hour, generation, as_of, computed_at, served_at, "
    "values) SELECT m.pipeline, c.{entity}::text, 'batch', g.model, date_trunc('hour', m.as_of, 'UTC'), g.generation, "
    "m.as_of, m.computed_at, g.published_at, to_jsonb(c) - ARRAY['generation', 'partition', {name}] "
    "FROM generations g JOIN generation_partitions m ON m.pipeline = g.pipeline AND m.generation = g.generation "
    "AND m.origin = g.generation JOIN {child} c ON c.partition = m.partition "
    "WHERE g.pipeline = %(pipeline)s AND g.generation = %(generation)s AND g.published_at IS NOT NULL "
    "AND g.state IN ('current', 'previous', 'retired') "
    "AND ('x' || left(md5(c.{entity}::text), 8))::bit(32)::bigint < %(threshold)s ON CONFLICT DO NOTHING"
)

# What was replaced: of a stream answer the batch answer a reader would have had in its stead, of a fresh
# one whatever was there before it. Batch answers of a generation after the one that answered then are none: by its
# number, for the clocks of Postgres and of the process that published may differ, and a generation may be rolled back.
_DUE = """
SELECT l.source, l.model, l.entity, l.as_of, (l.values ->> %(output)s)::float8, o.as_of, o.values
FROM prediction_log l LEFT JOIN LATERAL (
    SELECT b.as_of, b.values FROM prediction_log b
    WHERE b.pipeline = l.pipeline AND b.entity = l.entity AND b.served_at <= l.served_at
        AND b.as_of <= l.as_of AND b.as_of >= l.as_of - %(usable_for)s
        AND (
            (b.source = 'batch' AND b.generation <= l.generation) OR (l.source = 'fresh' AND b.source = 'stream')
        )
    ORDER BY b.as_of DESC, b.served_at DESC LIMIT 1
) o ON l.source <> 'batch'
WHERE l.pipeline = %(pipeline)s AND l.as_of > %(first)s AND l.as_of <= %(last)s AND l.values ? %(output)s
ORDER BY l.entity LIMIT %(limit)s
"""

_PROGRESS = """
WITH done AS (SELECT max(through) AS through FROM outcome_progress WHERE pipeline = %(pipeline)s)
SELECT done.through,
    (SELECT min(l.as_of + h) FROM (SELECT DISTINCT as_of FROM prediction_log WHERE pipeline = %(pipeline)s) l,
        unnest(%(horizons)s::interval[]) h WHERE done.through IS NULL OR l.as_of + h > done.through),
    (SELECT count(*) FROM prediction_log WHERE pipeline = %(pipeline)s)
FROM done
"""

_ADD = sql.SQL(
    "INSERT INTO outcomes AS o (pipeline, output, source, model, hour, {names}) VALUES (%s, %s, %s, %s, %s, {places}) "
    "ON CONFLICT (pipeline, output, source, model, hour) DO UPDATE SET {sums}"
).format(
    names=sql.SQL(", ").join(map(sql.Identifier, SUMS)),
    places=sql.SQL(", ").join(sql.Placeholder() for _ in SUMS),
    sums=sql.SQL(", ").join(
        sql.SQL("{0} = {1} + {2}").format(sql.Identifier(n), sql.Identifier("o", n), sql.Identifier("excluded", n))
        for n in SUMS
    ),
)


class Due(NamedTuple):
    """A logged prediction of one output whose moment was observed, and the answer it stood in for."""

    source: str
    model: str
    entity: str
    as_of: datetime
    value: float
    replaced_as_of: datetime | None
    replaced: Mapping[str, float] | None


class Key(NamedTuple):
    """What errors are summed by; `hour` is that of the predicted moment."""

    output: str
    source: str
    model: str
    hour: datetime


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far outcomes are, and what waits for them.

    Args:
        settled: predicted moments up to here are settled; None if none ever was.
        next_due: the first predicted moment in the log that is not settled; None if nothing waits.
        logged: predictions in the log.
    """

    settled: datetime | None
    next_due: datetime | None
    logged: int


class Settling:
    """One transaction in which outcomes are computed: whatever it adds counts once, with its progress or not at all."""

    def __init__(self, connection: Connection, pipeline: Pipeline, settled: datetime | None) -> None:
        self._connection, self._pipeline = connection, pipeline
        self.settled = settled

    def earliest(self) -> datetime | None:
        """as_of of the oldest prediction in the log."""
        row = self._connection.execute(
            "SELECT min(as_of) FROM prediction_log WHERE pipeline = %s", (self._pipeline.name,)
        ).fetchone()
        return None if row is None or row[0] is None else need_utc(row[0])

    def due(self, output: str, first: datetime, last: datetime) -> list[Due]:
        """Logged predictions of an output with an as_of after `first`, up to and including `last`."""
        rows = self._connection.execute(
            _DUE,
            {
                "pipeline": self._pipeline.name,
                "output": output,
                "first": first,
                "last": last,
                "usable_for": self._pipeline.freshness.usable_for,
                "limit": DUE_ROWS_MAX,
            },
        ).fetchall()
        return [
            Due(source, model, entity, need_utc(as_of), value, None if other is None else need_utc(other), values)
            for source, model, entity, as_of, value, other, values in rows
        ]

    def finish(self, found: Mapping[Key, Sums], settled: datetime) -> None:
        """Add errors to what is kept, and note that moments up to `settled` are done."""
        name = self._pipeline.name
        with self._connection.cursor() as cursor:
            cursor.executemany(_ADD, [(name, *key, *astuple(sums)) for key, sums in sorted(found.items())])
        self._connection.execute("UPDATE outcome_progress SET through = %s WHERE pipeline = %s", (settled, name))
        self._connection.execute(
            "DELETE FROM outcomes WHERE pipeline = %s AND hour < %s", (name, settled - OUTCOMES_KEPT)
        )


class PredictionLog(Closing):
    """The prediction log and the outcomes, over one connection that opens when first needed.

    Every method raises `Unavailable` when Postgres does not answer in time, and
    `UsageError` when the database was not migrated.

    Args:
        url: postgresql:// URL.
    """

    def __init__(self, url: str) -> None:
        self._client = Client(url)

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        self._client.close()

    def log_generation(self, pipeline: Pipeline, generation: int) -> int:
        """Log a published generation's own predictions, and let go of what is past any use; returns rows added.

        Does nothing for a generation that was archived or rejected, or was logged before.
        """
        longest = max((horizon for _, horizon in horizons(pipeline)), default=timedelta(0))
        with self._client.transaction() as connection:
            row = connection.execute(
                "SELECT g.as_of, g.rows, to_regclass(%s) IS NOT NULL FROM generations g "
                "WHERE pipeline = %s AND generation = %s",
                (child_name(pipeline.name, generation), pipeline.name, generation),
            ).fetchone()
            if row is None or not row[2]:
                return 0
            threshold = sample_threshold(row[1])
            connection.execute(
                "INSERT INTO prediction_sample VALUES (%s, %s) ON CONFLICT (pipeline) DO UPDATE SET "
                "threshold = excluded.threshold",
                (pipeline.name, threshold),
            )
            statement = _LOG_GENERATION.format(
                entity=sql.Identifier(pipeline.entity),
                name=sql.Literal(pipeline.entity),
                child=sql.Identifier(child_name(pipeline.name, generation)),
            )
            added = connection.execute(
                statement, {"pipeline": pipeline.name, "generation": generation, "threshold": threshold}
            ).rowcount
            connection.execute(
                "DELETE FROM prediction_log WHERE pipeline = %s AND as_of < %s",
                (pipeline.name, row[0] - longest - pipeline.freshness.usable_for - LOG_MARGIN),
            )
        return added

    @contextmanager
    def settling(self, pipeline: Pipeline) -> Iterator[Settling]:
        """A transaction that holds the pipeline's progress: two computations at once take turns."""
        with self._client.transaction() as connection:
            connection.execute(
                "INSERT INTO outcome_progress (pipeline) VALUES (%s) ON CONFLICT DO NOTHING", (pipeline.name,)
            )
            row = connection.execute(
                "SELECT through FROM outcome_progress WHERE pipeline = %s FOR UPDATE", (pipeline.name,)
            ).fetchone()
            settled = None if row is None or row[0] is None else need_utc(row[0])
            yield Settling(connection, pipeline, settled)

    def progress(self, pipeline: Pipeline) -> Progress:
        """How far outcomes are."""
        settled, due, logged = self._client.query(
            _PROGRESS, {"pipeline": pipeline.name, "horizons": [horizon for _, horizon in horizons(pipeline)]}
        )[0]
        found = [None if moment is None else need_utc(moment) for moment in (settled, due)]
        return Progress(settled=found[0], next_due=found[1], logged=logged)

    def logged(self, pipeline: str, source: str, as_of: datetime) -> int:
        """How many predictions of a source with this as_of are in the log."""
        return int(
            self._client.query(
                "SELECT count(*) FROM prediction_log WHERE pipeline = %s AND source = %s AND as_of = %s",
                (pipeline, source, as_of),
            )[0][0]
        )

    def errors(self, pipeline: str, since: datetime | None = None) -> dict[tuple[str, str], Sums]:
        """Sums by output and source over predicted moments from `since` on, all models together."""
        sums = sql.SQL(", ").join(sql.SQL("sum({})").format(sql.Identifier(name)) for name in SUMS)
        rows = self._client.query(
            sql.SQL(
                "SELECT output, source, {} FROM outcomes WHERE pipeline = %s "
                "AND (%s::timestamptz IS NULL OR hour >= %s) GROUP BY output, source"
            ).format(sums),
            (pipeline, since, since),
        )
        return {
            (output, source): Sums(**{n: int(v) if n.endswith("n") else v for n, v in zip(SUMS, found, strict=True)})
            for output, source, *found in rows
        }
