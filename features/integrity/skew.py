"""Train/serve skew: online features of some entities beside the offline ones of the same moments.

Each view's row is compared as of its own event time, with what `features.offline.reading.historical`, which training
and batch read, has for that entity and moment. So a view that was brought up to an earlier hour than another is no
skew, and neither is a row that the stream brought since: an event whose row is not in the offline store yet is in
flight, is counted, and is compared once it is there. Rows of views that no event pushes are compared in any case,
for materializing brings nothing that the offline store does not have.

An entity without an online row is compared as of the newest row that the others have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from almanac.clock import need_utc
from almanac.feature_checks import Example, Skew
from almanac.partitioning import EntityKey, Grid
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from features.archived import archived_files
from features.layout import EVENT_TIMESTAMP
from features.offline.reading import historical
from features.online import OnlineFeatures
from features.own_files import folder_of, literal, quoted
from features.store import open_service, registry_errors
from features.tables import Table, opened, watermark

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES_MAX = 5
"""Entities shown of each feature."""

Floats = NDArray[np.float32] | NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ViewSkew:
    """One view's part of a comparison; moments and flags are in the entities' order.

    Args:
        moments: event time of each online row; None where there is none.
        in_flight: rows that an event brought and that the offline store does not have yet.
        features: by column.
    """

    moments: tuple[datetime | None, ...]
    in_flight: Flags
    features: Mapping[str, Skew]


def sample(pipeline: Pipeline, tables: Sequence[Table], now: datetime, size: int, seed: int) -> list[EntityKey]:
    """Some entities, each as likely as any other; of buckets, of those that a view which changes knows.

    Raises:
        FeatureError: the view's files cannot be read.
    """
    if isinstance(pipeline.partitions, Grid):
        cells = pipeline.partitions.cells
        chosen = np.random.default_rng(seed).choice(cells, min(size, cells), replace=False)
        return [int(cell) for cell in np.sort(chosen)]
    table = next((table for table in tables if table.ttl is not None), tables[0])
    as_of = watermark(tables, pipeline, now)
    since = "" if table.ttl is None else f" AND {quoted(table.moment)} >= {literal(as_of - table.ttl)}"
    with opened(table) as (connection, rows):
        found = connection.execute(
            f"SELECT key FROM (SELECT DISTINCT {quoted(table.key)} AS key FROM {rows} "  # noqa: S608
            f"WHERE {quoted(table.moment)} <= {literal(as_of)}{since}) WHERE key IS NOT NULL "
            f"ORDER BY hash(key, {int(seed)}) LIMIT {int(size)}"
        ).fetchall()
    return sorted(row[0] for row in found)


def compare(
    pipeline: Pipeline, settings: Settings, tables: Sequence[Table], pushed: Mapping[str, bool], entities: list[Any]
) -> dict[str, ViewSkew]:
    """Online beside offline, by view.

    Args:
        tables: of the pipeline's views.
        pushed: whether events push a view, by its name.
        entities: whose features are compared.

    Raises:
        FeatureError: the offline features cannot be read, or a value in Redis is none.
        Unavailable: Redis or the registry does not answer.
    """
    online, moments = OnlineFeatures(pipeline, settings).read_with_moments(entities)
    asked = {table.view: _asked(moments[table.view]) for table in tables}
    offline, row_of = _recomputed(pipeline, settings, entities, asked)
    found = {}
    for table in tables:
        times = moments[table.view]
        flying = np.zeros(len(entities), dtype=bool)
        if pushed[table.view]:
            flying = ~_known(table, entities, times) & np.array([when is not None for when in times], dtype=bool)
        chosen = np.flatnonzero(~flying & np.array([when is not None for when in asked[table.view]], dtype=bool))
        rows = np.array([row_of[entities[at], asked[table.view][at]] for at in chosen], dtype=np.int64)
        found[table.view] = ViewSkew(
            moments=tuple(times),
            in_flight=flying,
            features={
                name: skew_of(
                    numbers(online, name, dtype_of(online, name))[chosen],
                    numbers(offline, name, dtype_of(online, name))[rows],
                    [(str(entities[at]), asked[table.view][at]) for at in chosen],
                )
                for name in table.features
            },
        )
    return found


def skew_of(online: Floats, offline: Floats, who: Sequence[tuple[str, datetime | None]]) -> Skew:
    """Compare pairs of values; NaN is a null, and equal is equal to the bit.

    Args:
        online, offline: (n,), both float32 or both float64.
        who: entity and moment of each pair, for examples; the greatest differences are shown.
    """
    left, right = np.isnan(online), np.isnan(offline)
    unequal = np.where(left | right, left != right, online != offline)
    finite = np.isfinite(online) & np.isfinite(offline)
    with np.errstate(over="ignore"):  # between doubles of either end
        gaps = np.abs(np.where(finite, online, 0).astype(np.float64) - np.where(finite, offline, 0))
    worst = np.flatnonzero(unequal)
    worst = worst[np.argsort(-np.where(finite, gaps, np.inf)[worst], kind="stable")][:EXAMPLES_MAX]
    return Skew(
        compared=len(online),
        unequal=int(unequal.sum()),
        only_online=int((~left & right).sum()),
        only_offline=int((left & ~right).sum()),
        greatest=float(gaps[finite].max()) if finite.any() else None,
        mean=float(gaps[finite].mean()) if finite.any() else None,
        examples=tuple(
            Example(entity=who[at][0], moment=moment, online=_shown(online[at]), offline=_shown(offline[at]))
            for at in worst.tolist()
            if (moment := who[at][1]) is not None
        ),
    )


def _shown(value: np.floating[Any]) -> float | None:
    return float(value) if np.isfinite(value) else None


def dtype_of(online: pa.Table, name: str) -> type[np.floating[Any]]:
    """What models read a feature as: float32 only where its view declares it so, which the online column says."""
    import pyarrow as pa

    return np.float32 if online.schema.field(name).type == pa.float32() else np.float64


def numbers(table: pa.Table, name: str, dtype: type[np.floating[Any]]) -> Floats:
    """A column in a type, NaN where it is null; a double beyond float32 becomes infinite there, as models read it."""
    with np.errstate(over="ignore"):
        found: Floats = table[name].to_numpy().astype(dtype)
    return found


def _asked(moments: Sequence[datetime | None]) -> list[datetime | None]:
    """The moment to recompute each entity at; None for all where nothing is online."""
    newest = max((when for when in moments if when is not None), default=None)
    return [when or newest for when in moments]


def _recomputed(
    pipeline: Pipeline, settings: Settings, entities: list[Any], asked: Mapping[str, list[datetime | None]]
) -> tuple[pa.Table, dict[tuple[Any, datetime | None], int]]:
    """Offline features of every entity and moment that some view asks for, and the row of each."""
    import pyarrow as pa

    wanted = {
        (entity, need_utc(moment)): None
        for moments in asked.values()
        for entity, moment in zip(entities, moments, strict=True)
        if moment is not None
    }
    kind = pa.int64() if pipeline.partitions.key_type is int else pa.string()
    table = pa.table(
        {
            pipeline.entity: pa.array([entity for entity, _ in wanted], kind),
            EVENT_TIMESTAMP: pa.array([moment for _, moment in wanted], pa.timestamp("us", tz="UTC")),
        }
    )
    return historical(pipeline, settings, table), {asked_for: row for row, asked_for in enumerate(wanted)}


def _known(table: Table, entities: list[Any], moments: Sequence[datetime | None]) -> Flags:
    """Whether the offline store, its archive included, has a row of exactly that entity and moment."""
    import pyarrow as pa

    there = [at for at, when in enumerate(moments) if when is not None]
    found = np.zeros(len(entities), dtype=bool)
    if not there:
        return found
    times = [need_utc(when) for when in moments if when is not None]
    asked = pa.table(
        {
            "place": pa.array(there, pa.int64()),
            "entity": pa.array([entities[at] for at in there]),
            "moment": pa.array(times, pa.timestamp("us", tz="UTC")),
        }
    )
    files = [*table.files, *archived_files(folder_of(table.path), min(times), max(times))]
    key, moment = quoted(table.key), quoted(table.moment)
    with opened(table, files=files) as (connection, rows):
        connection.register("asked", asked)
        places = connection.execute(
            f"SELECT DISTINCT place FROM (SELECT {key} AS key, {moment} AS known_at FROM {rows} "  # noqa: S608
            f"WHERE {moment} BETWEEN {literal(min(times))} AND {literal(max(times))}) "
            "JOIN asked ON asked.entity = key AND asked.moment = known_at"
        ).fetchall()
    found[[place for (place,) in places]] = True
    return found


def pushed_views(pipeline: Pipeline, settings: Settings) -> dict[str, bool]:
    """Whether events push each view of the pipeline's FeatureService.

    Raises:
        FeatureError: the service is not defined.
        Unavailable: the registry does not answer.
    """
    store, service = open_service(pipeline, settings)
    with registry_errors():
        names = [projection.name for projection in service.feature_view_projections]
        return {name: store.get_feature_view(name).stream_source is not None for name in names}
