"""Postgres as a place: the record itself, in three short queries however many entities.

The first query reads pointer, generations and manifest entries in one snapshot,
as the same JSON that Redis holds. Rows are then read from the children (one per
origin) directly, so that no maintenance of the partitioned table makes a reader
queue. A child that was dropped in between means that the pointer has long
moved: everything is read again, once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from almanac.errors import PredictionError, UsageError
from almanac.ladder import Candidate, Candidates
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from almanac.ranked import RankedList, Value
from almanac.ranking_declared import ITEMS_COLUMN, SCORES_COLUMN
from serving_cache import layout
from serving_cache.lookup.batching import Batches
from serving_cache.lookup.candidates import (
    clock_shifts,
    from_overlay,
    from_row,
    generation_summary,
    held_default,
    need_same_partitions,
    values_of,
)
from serving_cache.lookup.places import SECONDS_PER_ENTITY, EntityReading, PlaceUnusable, Reading
from serving_cache.lookup.postgres_connections import Connections, Lent
from serving_cache.records import ManifestEntry, OverlayRecord, Pointer

POSTGRES_LIMIT_SECONDS = 1.0
STATEMENT_GRACE_SECONDS = 1.0  # a statement that was given up ends by itself at the server
READS_MAX = 2  # of one lookup, when rows were dropped between its queries

_HEAD = """
SELECT json_build_object(
    'pointer', CASE WHEN g.generation IS NULL THEN NULL ELSE json_build_object(
        'pipeline', p.pipeline, 'epoch', p.epoch, 'moved_at', p.moved_at,
        'generation', to_jsonb(g) - 'manifest',
        'previous', CASE WHEN h.generation IS NULL THEN NULL ELSE to_jsonb(h) - 'manifest' END) END,
    'manifest', coalesce((
        SELECT json_agg(to_jsonb(m) || jsonb_build_object('model', o.model))
        FROM generation_partitions m JOIN generations o ON o.pipeline = m.pipeline AND o.generation = m.origin
        WHERE m.pipeline = p.pipeline AND m.generation IN (p.generation, p.previous)
          AND m.partition = ANY(%(partitions)s)), '[]'::json))::text
FROM pointers p
LEFT JOIN generations g ON g.pipeline = p.pipeline AND g.generation = p.generation
LEFT JOIN generations h ON h.pipeline = p.pipeline AND h.generation = p.previous
WHERE p.pipeline = %(pipeline)s
"""
_OVERLAYS = """
SELECT coalesce(json_agg(to_jsonb(o)), '[]'::json)::text
FROM overlay o WHERE o.pipeline = %(pipeline)s AND o.entity = ANY(%(entities)s)
"""


class _Listed(ManifestEntry, frozen=True, kw_only=True):
    """A manifest entry and the generation that lists it."""

    generation: int


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of the first query."""

    pointer: Pointer | None = None
    manifest: tuple[_Listed, ...] = ()


T = TypeVar("T")
_head_decoder = msgspec.json.Decoder(_Head)
_overlays_decoder = msgspec.json.Decoder(tuple[OverlayRecord, ...])
_Rows = Mapping[int, Mapping[EntityKey, Mapping[str, Value]]]


@dataclass(frozen=True)
class _Asked:
    """The question of one lookup."""

    pipeline: Pipeline
    entities: Sequence[EntityKey]
    partition_of: Mapping[EntityKey, int] = field(default_factory=dict)


class PostgresPlace:
    """Reads the record.

    Args:
        url: postgresql:// URL.
        limit_seconds: how long one read may take in all; the server ends statements a second later.

    Raises:
        UsageError: the URL cannot be read.
    """

    name = "postgres"

    def __init__(self, url: str, *, limit_seconds: float = POSTGRES_LIMIT_SECONDS) -> None:
        self.limit_seconds = limit_seconds
        milliseconds = int((limit_seconds + STATEMENT_GRACE_SECONDS) * 1000)
        try:
            given = str(conninfo_to_dict(url).get("options") or "")  # such as a search_path, which the record has too
            limits = f"-c statement_timeout={milliseconds} -c default_transaction_read_only=on -c timezone=UTC"
            conninfo = make_conninfo(
                url,
                connect_timeout=2,  # whole seconds, libpq's least
                tcp_user_timeout=2000,
                keepalives_idle=30,  # seconds; a firewall then sees an idle connection as alive
                keepalives_interval=5,
                keepalives_count=3,
                application_name="almanac lookup",
                options=f"{given} {limits}".strip(),
            )
        except psycopg.ProgrammingError:
            raise UsageError(
                "the Postgres URL cannot be read: give postgresql://user:password@host:port/database"
            ) from None
        self._connections = Connections(conninfo, limit_seconds)
        self._batches = Batches(self._read)

    async def read(self, pipeline: Pipeline, entities: Sequence[EntityKey]) -> Reading:
        """Everything the record holds about these entities, by one pointer.

        Raises:
            PlaceDown: it cannot be reached.
            PlaceBusy: no connection came free in time.
            PlaceUnusable: it lacks tables, or its rows went away twice while they were read.
        """
        return await self._batches.read(pipeline, entities)

    async def _read(self, pipeline: Pipeline, entities: Sequence[EntityKey]) -> Reading:
        partition_of = {entity: pipeline.partitions.partition_of(entity) for entity in entities}
        asked = _Asked(pipeline, entities, partition_of)
        extra_seconds = (len(entities) - 1) * SECONDS_PER_ENTITY
        return await self._guarded(lambda connection: _read(connection, asked), extra_seconds)

    async def current(self, pipeline: Pipeline) -> dict[str, object] | None:
        """The current generation, for people."""

        async def ask(connection: Lent) -> dict[str, object] | None:
            return generation_summary((await _head(connection, pipeline, [])).pointer)

        return await self._guarded(ask)

    async def check(self) -> None:
        """Return if Postgres answers."""

        async def ask(connection: Lent) -> None:
            await connection.rows("SELECT 1")

        await self._guarded(ask)

    async def close(self) -> None:
        """Close all connections."""
        await self._connections.close()

    async def _guarded(self, ask: Callable[[Lent], Awaitable[T]], extra_seconds: float = 0.0) -> T:
        """Run `ask` on a connection; once more if rows were dropped under it."""
        for attempt in range(1, READS_MAX + 1):
            try:
                return await self._connections.run(ask, extra_seconds)
            except psycopg.errors.UndefinedTable:
                if attempt == READS_MAX:
                    raise PlaceUnusable("postgres lacks a table: run `almanac up`, or publish a generation") from None
            except (psycopg.Error, msgspec.DecodeError) as error:
                raise PlaceUnusable(f"postgres answered with an error ({type(error).__name__})") from None
        raise AssertionError("unreachable")


async def _head(connection: Lent, pipeline: Pipeline, partitions: Sequence[int]) -> _Head:
    rows = await connection.rows(_HEAD, {"pipeline": pipeline.name, "partitions": list(partitions)})
    return _head_decoder.decode(rows[0][0]) if rows else _Head()


async def _read(connection: Lent, asked: _Asked) -> Reading:
    head = await _head(connection, asked.pipeline, sorted(set(asked.partition_of.values())))
    pointer = head.pointer
    if pointer is None:
        return Reading(epoch=0, entities={entity: EntityReading(candidates=Candidates()) for entity in asked.entities})
    need_same_partitions(asked.pipeline, pointer.generation, PostgresPlace.name)
    entries = {(entry.generation, entry.partition): entry for entry in head.manifest}
    overlays = await _overlays(connection, asked)
    rows = await _rows(connection, asked, sorted({entry.origin for entry in head.manifest}))
    old = pointer.previous.generation if pointer.previous is not None else None
    shown: dict[EntityKey, EntityReading] = {}
    for entity in asked.entities:
        partition = asked.partition_of[entity]
        now = pointer.generation
        current = entries.get((now.generation, partition))
        previous = entries.get((old, partition)) if old is not None else None
        shown[entity] = EntityReading(
            candidates=Candidates(
                generation=now.generation,
                model=now.model,
                overlays=tuple(from_overlay(o, now, PostgresPlace.name) for o in overlays.get(str(entity), ())),
                current=_candidate(entity, current, rows),
                previous=_candidate(entity, previous, rows),
                default=held_default(asked.pipeline, now),
            ),
            covered=current is not None,
        )
    return Reading(epoch=pointer.epoch, entities=shown, clock_shifts=clock_shifts(pointer))


async def _overlays(connection: Lent, asked: _Asked) -> dict[str, list[OverlayRecord]]:
    [[overlays]] = await connection.rows(
        _OVERLAYS, {"pipeline": asked.pipeline.name, "entities": [str(entity) for entity in asked.entities]}
    )
    found: dict[str, list[OverlayRecord]] = {}
    for overlay in _overlays_decoder.decode(overlays):
        found.setdefault(overlay.entity, []).append(overlay)
    return found


async def _rows(connection: Lent, asked: _Asked, origins: Sequence[int]) -> _Rows:
    """The entities' rows in each origin's child."""
    if not origins:
        return {}
    names = asked.pipeline.stored_columns
    # float8: a real as text is shortened, and would differ from the block's number
    kind = "float8" if asked.pipeline.ranking is None else "float8[]"
    columns = sql.SQL(", ").join(
        sql.SQL("{}" if name == ITEMS_COLUMN and asked.pipeline.ranking else "{}::" + kind).format(sql.Identifier(name))
        for name in names
    )
    entity = sql.Identifier(asked.pipeline.entity)
    queries = [
        sql.SQL(
            "SELECT {origin}::bigint, {entity}, {columns} FROM {child} "
            "WHERE partition = ANY(%(partitions)s) AND {entity} = ANY(%(entities)s)"
        ).format(
            origin=sql.Literal(origin),
            entity=entity,
            columns=columns,
            child=sql.Identifier(layout.child_name(asked.pipeline.name, origin)),
        )
        for origin in origins
    ]
    values = {"partitions": sorted(set(asked.partition_of.values())), "entities": list(asked.entities)}
    rows = await connection.rows(sql.SQL(" UNION ALL ").join(queries), values)
    found: dict[int, dict[EntityKey, Mapping[str, Value]]] = {origin: {} for origin in origins}
    for origin, key, *parts in rows:
        row = {name: part for name, part in zip(names, parts, strict=True) if part is not None}
        found[origin][key] = row if asked.pipeline.ranking is None else values_of(asked.pipeline, _list_of(row))
    return found


def _list_of(row: dict[str, Any]) -> RankedList:
    """A list as its row has it; attributes that were declared since are not there.

    Raises:
        PlaceUnusable: it is none: somebody changed it.
    """
    items, scores = row.pop(ITEMS_COLUMN, ()), row.pop(SCORES_COLUMN, ())
    try:
        return msgspec.convert({"items": items, "scores": scores, "attributes": row}, RankedList)
    except (msgspec.ValidationError, PredictionError):
        raise PlaceUnusable("postgres holds a list that is none: run the pipeline again") from None


def _candidate(entity: EntityKey, entry: _Listed | None, rows: _Rows) -> Candidate | None:
    values = rows.get(entry.origin, {}).get(entity) if entry is not None else None
    return None if entry is None or values is None else from_row(values, entry, entry.generation, PostgresPlace.name)
