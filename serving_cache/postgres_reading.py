"""Reading generations, and writing and reading overlays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec
from psycopg import sql

from almanac.clock import EPOCH, need_utc
from almanac.decisions import newest
from almanac.errors import Unavailable, UsageError
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from almanac.ranked import Value
from serving_cache.layout import child_name
from serving_cache.postgres_packing import packed
from serving_cache.postgres_rows import WIDTH, StoreBase, generation_columns, generation_record
from serving_cache.postgres_staging import Staging
from serving_cache.records import GenerationRecord, ManifestEntry, OverlayRecord, Pointer
from serving_cache.stage_times import StageTime, of_generation

GENERATIONS_LIMIT = 1000
OVERLAYS_PER_STATEMENT = 5000

_POINTER = sql.SQL(
    "SELECT q.epoch, q.moved_at, {current}, {previous} FROM pointers q "
    "JOIN generations g ON g.pipeline = q.pipeline AND g.generation = q.generation "
    "LEFT JOIN generations p ON p.pipeline = q.pipeline AND p.generation = q.previous WHERE q.pipeline = %s"
).format(current=generation_columns("g"), previous=generation_columns("p"))

_MANIFEST = (
    "SELECT m.partition, m.origin, m.block_hash, m.rows, m.as_of, m.computed_at, o.model, m.reason "
    "FROM generation_partitions m JOIN generations o ON o.pipeline = m.pipeline AND o.generation = m.origin "
    "WHERE m.pipeline = %s AND m.generation = %s ORDER BY m.partition"
)

# Each entity and model occurs once in a statement (`newest`), as ON CONFLICT demands; topics compare by
# their bytes (COLLATE "C" of the column).
_PUT_OVERLAYS = """
INSERT INTO overlay AS o
    (pipeline, entity, model, as_of, topic, kafka_partition, kafka_offset, values, computed_at)
SELECT %s, * FROM unnest(
    %s::text[], %s::text[], %s::timestamptz[], %s::text[], %s::int[], %s::bigint[], %s::jsonb[], %s::timestamptz[])
ON CONFLICT (pipeline, entity, model) DO UPDATE SET
    as_of = excluded.as_of, topic = excluded.topic, kafka_partition = excluded.kafka_partition,
    kafka_offset = excluded.kafka_offset, values = excluded.values, computed_at = excluded.computed_at,
    written_at = clock_timestamp()
WHERE (excluded.as_of, excluded.topic, excluded.kafka_partition, excluded.kafka_offset)
    > (o.as_of, o.topic, o.kafka_partition, o.kafka_offset)
"""

_ENTITY_OVERLAYS = (
    "SELECT entity, model, as_of, topic, kafka_partition, kafka_offset, values, computed_at FROM overlay "
    "WHERE pipeline = %s AND entity = ANY(%s)"
)

_OVERLAID = "SELECT DISTINCT entity FROM overlay WHERE pipeline = %s AND entity = ANY(%s)"

_ORIGINS = (
    "SELECT DISTINCT m.origin, o.entity FROM pointers p "
    "JOIN generation_partitions m ON m.pipeline = p.pipeline AND m.generation = p.generation "
    "JOIN generations o ON o.pipeline = m.pipeline AND o.generation = m.origin "
    "WHERE p.pipeline = %s AND m.partition = ANY(%s)"
)

_OVERLAYS = (
    "SELECT entity, model, as_of, topic, kafka_partition, kafka_offset, values, computed_at FROM overlay "
    "WHERE pipeline = %s AND (%s::text IS NULL OR model = %s) AND as_of >= %s AND written_at >= %s "
    "AND (entity, model) > (%s, %s) ORDER BY entity, model LIMIT %s"
)


class Reading(StoreBase):
    """The part of `PostgresStore` that tells what is published."""

    def pointer(self, pipeline: str) -> Pointer | None:
        """What readers read now; None before the first generation is published.

        Raises:
            Unavailable: Postgres does not answer.
        """
        rows = self._client.query(_POINTER, (pipeline,))
        if not rows:
            return None
        epoch, moved_at, *records = rows[0]
        current, previous = records[:WIDTH], records[WIDTH:]
        return Pointer(
            pipeline=pipeline,
            epoch=epoch,
            generation=generation_record(current),
            previous=None if previous[0] is None else generation_record(previous),
            moved_at=need_utc(moved_at),
        )

    def generation(self, pipeline: str, generation: int) -> GenerationRecord | None:
        """One generation by number; None if there is none of this number."""
        rows = self._client.query(
            sql.SQL("SELECT {} FROM generations g WHERE pipeline = %s AND generation = %s").format(
                generation_columns("g")
            ),
            (pipeline, generation),
        )
        return generation_record(rows[0]) if rows else None

    def generations(self, pipeline: str, limit: int = 20) -> list[GenerationRecord]:
        """The latest generations, newest first; at most `GENERATIONS_LIMIT`."""
        rows = self._client.query(
            sql.SQL("SELECT {} FROM generations g WHERE pipeline = %s ORDER BY generation DESC LIMIT %s").format(
                generation_columns("g")
            ),
            (pipeline, min(limit, GENERATIONS_LIMIT)),
        )
        return [generation_record(row) for row in rows]

    def stage_times(self, pipeline: str, generation: int) -> list[StageTime]:
        """Every attempt at a generation's stages that was recorded, in the order they began."""
        return of_generation(self._client, pipeline, generation)

    def manifest(self, pipeline: str, generation: int) -> dict[int, ManifestEntry]:
        """Partition to the block that holds it; empty if the generation is unpublished or dropped."""
        rows = self._client.query(_MANIFEST, (pipeline, generation))
        return {
            partition: ManifestEntry(
                partition=partition,
                origin=origin,
                block_hash=digest,
                rows=count,
                as_of=need_utc(as_of),
                computed_at=need_utc(computed_at),
                model=model,
                reason=reason,
            )
            for partition, origin, digest, count, as_of, computed_at, model, reason in rows
        }

    def put_overlays(self, pipeline: str, records: Sequence[OverlayRecord]) -> int:
        """Store predictions from the stream where they are newer than what is stored; returns how many were.

        All of them or, on an error, none. Replays and zombies change nothing.

        Raises:
            Unavailable: Postgres does not answer.
        """
        best = newest(records)
        written = 0
        with self._client.transaction() as connection:
            for start in range(0, len(best), OVERLAYS_PER_STATEMENT):
                columns = _overlay_columns(best[start : start + OVERLAYS_PER_STATEMENT])
                written += connection.execute(_PUT_OVERLAYS, (pipeline, *columns)).rowcount
        return written

    def overlays(self, pipeline: str, model: str, since: datetime) -> list[OverlayRecord]:
        """Overlays of one model with an as_of from `since` on, by entity."""
        return [record for page in self.overlay_pages(pipeline, model, since) for record in page]

    def entity_overlays(self, pipeline: str, entities: Sequence[str]) -> list[OverlayRecord]:
        """Every overlay of some entities, of each model.

        Raises:
            Unavailable: Postgres does not answer.
        """
        rows = self._client.query(_ENTITY_OVERLAYS, (pipeline, list(entities)))
        return [_overlay_record(row) for row in rows]

    def predicted(self, pipeline: Pipeline, entities: Sequence[EntityKey]) -> set[EntityKey]:
        """Which of these entities have a prediction of their own: in the generation that answers, or as an overlay.

        A default that answers for whoever is not known is not one.

        Raises:
            Unavailable: Postgres does not answer, or a generation went meanwhile.
        """
        by_name = {str(entity): entity for entity in entities}
        found = {by_name[name] for (name,) in self._client.query(_OVERLAID, (pipeline.name, list(by_name)))}
        partitions = sorted({pipeline.partitions.partition_of(entity) for entity in entities})
        for origin, column in self._client.query(_ORIGINS, (pipeline.name, partitions)):
            asked = sql.SQL("SELECT {0} FROM {1} WHERE partition = ANY(%s) AND {0} = ANY(%s)").format(
                sql.Identifier(column), sql.Identifier(child_name(pipeline.name, origin))
            )
            try:
                found.update(key for (key,) in self._client.query(asked, (partitions, list(entities))))
            except UsageError:  # it was retired since the pointer was read
                raise Unavailable(f"generation {origin} of {pipeline.name} went meanwhile: ask again") from None
        return found

    def now(self) -> datetime:
        """The time by the server's clock, which is the one that stamps what is stored.

        Raises:
            Unavailable: Postgres does not answer.
        """
        return need_utc(self._client.query("SELECT clock_timestamp()")[0][0])

    def overlay_pages(
        self, pipeline: str, model: str | None, since: datetime, written_since: datetime | None = None
    ) -> Iterator[list[OverlayRecord]]:
        """As `overlays`, by pages of `OVERLAYS_PER_STATEMENT`.

        Args:
            model: whose; None for every model's.
            written_since: leave out what was stored before this moment of the server's clock; None for nothing.
        """
        after = ("", "")
        stored_from = written_since or EPOCH
        while True:
            found = (pipeline, model, model, since, stored_from, *after, OVERLAYS_PER_STATEMENT)
            rows = self._client.query(_OVERLAYS, found)
            if not rows:
                return
            after = (rows[-1][0], rows[-1][1])
            yield [_overlay_record(row) for row in rows]
            if len(rows) < OVERLAYS_PER_STATEMENT:
                return


class Blocks(Staging):
    """The part of `PostgresStore` that packs rows into blocks again."""

    def blocks(self, pipeline: Pipeline, generation: int, partitions: Sequence[int]) -> dict[str, bytes]:
        """Blocks of a generation by their hash, packed from its rows and proved against the manifest.

        Raises:
            UsageError: the generation has no such partition.
            BlockError: rows are gone, or are not those that were published.
            Unavailable: Postgres does not answer.
        """
        rows = self._client.query(
            "SELECT m.partition, m.origin, m.block_hash, o.entity, o.outputs FROM generation_partitions m "
            "JOIN generations o ON o.pipeline = m.pipeline AND o.generation = m.origin "
            "WHERE m.pipeline = %s AND m.generation = %s AND m.partition = ANY(%s)",
            (pipeline.name, generation, list(partitions)),
        )
        absent = set(partitions) - {row[0] for row in rows}
        if absent:
            raise UsageError(
                f"generation {generation} of {pipeline.name} has no partition {min(absent)}: it is unpublished, "
                "dropped, or never covered it"
            )
        wanted: dict[tuple[int, str, tuple[str, ...]], dict[int, str]] = defaultdict(dict)
        for partition, origin, digest, entity, outputs in rows:
            wanted[origin, entity, tuple(outputs)][partition] = digest
        found: dict[str, bytes] = {}
        with self._client.session() as connection:
            for (origin, entity, outputs), hashes in wanted.items():
                found.update(packed(connection, child_name(pipeline.name, origin), (entity, *outputs), hashes))
        return found


def _overlay_columns(records: list[OverlayRecord]) -> tuple[list[Any], ...]:
    return (
        [r.entity for r in records],
        [r.model for r in records],
        [r.as_of for r in records],
        [r.topic for r in records],
        [r.kafka_partition for r in records],
        [r.kafka_offset for r in records],
        [msgspec.json.encode(r.values).decode() for r in records],
        [r.computed_at for r in records],
    )


def _overlay_record(row: Any) -> OverlayRecord:
    entity, model, as_of, topic, partition, offset, values, computed_at = row
    return OverlayRecord(
        entity=entity,
        model=model,
        as_of=need_utc(as_of),
        topic=topic,
        kafka_partition=partition,
        kafka_offset=offset,
        values=msgspec.convert(values, dict[str, Value], strict=False),
        computed_at=need_utc(computed_at),
    )
