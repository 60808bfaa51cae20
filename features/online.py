"""Online features: the latest row of each entity in Redis, written by `features.materialize` and the stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.clock import need_utc, utc_now
from almanac.errors import FeatureError, Unavailable
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from features.layout import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from features.online_reading import Reader
from features.reading_plans import plan_of
from features.sources import grid_of
from features.store import open_service, registry_errors

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureService, FeatureStore, FeatureView

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)  # nothing has expired then
READ_ENTITIES_MAX = 1_000  # of one trip to Redis
NEWEST_AT = "newest_at"
"""Column of the newest event time among an entity's features that no event replaces."""


def observation_row(
    pipeline: Pipeline, entity: EntityKey, observed_at: datetime, value: float | Mapping[str, float]
) -> dict[str, Any]:
    """The pushed view's row for one event: entity, `event_timestamp`, and the columns that batch computes.

    Args:
        value: what was observed: the source's variable, or of a pipeline without a source the view's columns.

    Raises:
        ValueError: `observed_at` has no time zone.
    """
    from features.grid import observation_columns

    if isinstance(value, Mapping):
        return {pipeline.entity: entity, EVENT_TIMESTAMP: need_utc(observed_at), **value}
    _, observed = grid_of(pipeline)
    return {
        pipeline.entity: entity,
        EVENT_TIMESTAMP: need_utc(observed_at),
        **observation_columns(value, observed_at, observed.variable),
    }


def views_of(store: FeatureStore, service: FeatureService) -> list[FeatureView]:
    """The feature views of a service, in its order."""
    names = [projection.name for projection in service.feature_view_projections]
    return [store.get_feature_view(name) for name in names]


class OnlineFeatures:
    """The online features of one pipeline; made once in a process that lives long.

    The definitions are read when it is made and not again, so that reads and
    pushes go on without Feast's registry.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, *, dated: bool = False) -> None:
        """Read the definitions.

        Args:
            dated: `read` adds the column `NEWEST_AT`.

        Raises:
            FeatureError: the pipeline's FeatureService is not registered.
            Unavailable: the registry does not answer.
        """
        settings.need("redis_url")
        self._pipeline = pipeline
        self._dated = dated
        self._store, self._service = open_service(pipeline, settings, ties_replace=True)
        with registry_errors():
            views = views_of(self._store, self._service)
            self._reader = Reader(plan_of(self._store, self._service))
        streams = [view for view in views if view.stream_source is not None]
        self._push_source = streams[0].stream_source.name if streams else None
        self._pushed = [field.name for field in streams[0].features] if streams else []

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the feature columns, in the service's order."""
        return tuple(column for view in self._reader.plan.views for column in view.columns)

    def read(self, entities: Sequence[EntityKey], *, at: datetime | None = None) -> pa.Table:
        """The latest features of some entities, in their order.

        Args:
            entities: each may occur more than once.
            at: rows older than their view's TTL at this moment count as missing; default: none does.

        Returns:
            The entity column and a float32 column per feature, null where missing; if `dated`, `NEWEST_AT` too.

        Raises:
            Unavailable: Redis does not answer.
        """
        import pyarrow as pa

        tables = [self._read(part, at) for part in _parts(entities)]
        return pa.concat_tables(tables or [self._table([], {}, [])]).combine_chunks()

    def read_with_moments(self, entities: Sequence[EntityKey]) -> tuple[pa.Table, dict[str, list[datetime | None]]]:
        """As `read`, whatever has expired, and each entity's event time by view; None where it has no row.

        Raises:
            Unavailable: Redis does not answer.
        """
        import pyarrow as pa

        tables = [self._table([], {}, [])]
        moments: dict[str, list[datetime | None]] = {view.name: [] for view in self._reader.plan.views}
        for part in _parts(entities):
            rows = self._rows(part)
            tables.append(self._table(part, self._reader.decode(rows, _LONG_AGO).columns, [None] * len(part)))
            for name, found in self._reader.moments(rows).items():
                moments[name] += found
        return pa.concat_tables(tables).combine_chunks(), moments

    def _read(self, entities: list[EntityKey], at: datetime | None) -> pa.Table:
        rows = self._rows(entities)
        found = self._reader.decode(rows, _LONG_AGO if at is None else at)
        return self._table(entities, found.columns, self._reader.newest_unobserved(rows) if self._dated else [])

    def _rows(self, entities: list[EntityKey]) -> Any:
        """One trip to Redis, without Feast: its own reading takes most of the time that the stream has for an event."""
        with redis_errors(), self._redis().pipeline(transaction=False) as trip:
            for entity in entities:
                trip.hmget(self._reader.key(entity), self._reader.fields)
            return trip.execute()

    def _redis(self) -> Any:
        """The connection that Feast's store writes with, and its time limits."""
        provider = self._store._get_provider()
        return provider.online_store._get_client(self._store.config.online_store)

    def _table(
        self, entities: list[EntityKey], columns: Mapping[str, np.ndarray[Any, Any]], newest: Sequence[datetime | None]
    ) -> pa.Table:
        import pyarrow as pa

        keys = pa.int64() if self._pipeline.partitions.key_type is int else pa.string()
        table = {self._pipeline.entity: pa.array(entities, keys)}
        for name in self.columns:
            # NaN is what is missing, and becomes a null; a double beyond float32 becomes infinite.
            with np.errstate(over="ignore"):
                numbers = columns[name].astype(np.float32) if columns else np.empty(0, np.float32)
            table[name] = pa.array(numbers, pa.float32(), from_pandas=True)
        if self._dated:
            whole = [when and when.replace(microsecond=0) for when in newest]
            table[NEWEST_AT] = pa.array(whole, pa.timestamp("s", tz="UTC"))
        return pa.table(table)

    def push(self, rows: pa.Table) -> None:
        """Write observations into Redis; each replaces its entity's row unless that is newer.

        Args:
            rows: entity, `event_timestamp` (with a time zone) and the observation view's columns.

        Raises:
            FeatureError: a column is absent, or no view of the service has a push source.
            Unavailable: Redis does not answer.
        """
        from feast.data_source import PushMode

        if self._push_source is None:
            raise FeatureError(f"no view of {self._pipeline.features} has a PushSource: declare one in its Feast file")
        absent = [
            name for name in (self._pipeline.entity, EVENT_TIMESTAMP, *self._pushed) if name not in rows.column_names
        ]
        if absent:
            raise FeatureError(f"pushed rows have no column {', '.join(absent)}: make them with observation_row")
        if not rows.num_rows:
            return
        frame = rows.select([self._pipeline.entity, EVENT_TIMESTAMP, *self._pushed]).to_pandas()
        frame[CREATED_TIMESTAMP] = utc_now()
        with redis_errors():
            self._store.push(self._push_source, frame, to=PushMode.ONLINE)


def _parts(entities: Sequence[EntityKey]) -> Iterator[list[EntityKey]]:
    for start in range(0, len(entities), READ_ENTITIES_MAX):
        yield list(entities[start : start + READ_ENTITIES_MAX])


@contextmanager
def redis_errors() -> Iterator[None]:
    """Map what the Redis client raises onto the project's errors."""
    import redis

    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        reason = (str(error).splitlines() or ["no answer"])[0]
        raise Unavailable(f"Redis did not answer for online features ({reason}): see `almanac status`") from error
    except redis.RedisError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unavailable(f"Redis refused online features ({reason}): see its log") from error
