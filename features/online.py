"""Online features: the latest row of each entity in Redis, written by `features.materialize.run` and the stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.clock import micros_of, need_utc, utc_now
from almanac.errors import FeatureError, Unavailable
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from almanac.redis_url import redis_address
from almanac.settings import Settings
from features.layout import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from features.online_reading import NEVER, Features, Reader, read
from features.packed.arrow import encode, micros
from features.packed.store import put_if_newer
from features.packed.views import keys_of, layout_of
from features.reading_plans import plan_of
from features.sources import grid_of
from features.store import key_ttl_seconds, open_service, registry_errors

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureService, FeatureStore, FeatureView

REDIS_SECONDS_MAX = 5.0
RETRIES_MAX = 2
RETRY_SECONDS_MAX = 0.2
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
        self._redis = open_redis(settings.need("redis_url"))
        self._pipeline = pipeline
        self._dated = dated
        store, service = open_service(pipeline, settings)
        with registry_errors():
            views = views_of(store, service)
            self._reader = Reader(plan_of(store, service))
        pushed = next((view for view in views if view.stream_source is not None), None)
        self._forgotten_after = key_ttl_seconds(store)
        versioned = store.config.registry.enable_online_feature_view_versioning
        # Where files do not say when their rows were created, events do not: neither would decide over the other.
        self._dates = pushed is not None and bool(pushed.batch_source.created_timestamp_column)
        self._pushed = pushed and (
            layout_of(store.project, pushed, versioned=versioned),
            keys_of(store.project, pushed, versioned=versioned),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the feature columns, in the service's order."""
        return tuple(column for view in self._reader.plan.views for column in view.columns)

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views online, in the service's order."""
        return tuple(view.name for view in self._reader.plan.views)

    def features(self, entities: Sequence[EntityKey] | np.ndarray[Any, Any], *, at: datetime | None = None) -> Features:
        """The latest features of some entities as NumPy columns, in their order, with what is known of each view's row.

        Args:
            entities: each may occur more than once.
            at: rows older than their view's TTL at this moment have expired; None: none has.

        Raises:
            FeatureError: an entity is no key, or what is in Redis cannot be read.
            Unavailable: Redis does not answer.
        """
        with redis_errors():
            return read(self._redis, self._reader, entities, at)

    def read(self, entities: Sequence[EntityKey], *, at: datetime | None = None) -> pa.Table:
        """The latest features of some entities, in their order.

        Args:
            entities: each may occur more than once.
            at: rows older than their view's TTL at this moment count as missing; default: none does.

        Returns:
            The entity column and a column per feature, null where missing: float32 of a Float32 feature, float64 of
            any other; if `dated`, `NEWEST_AT` too.

        Raises:
            Unavailable: Redis does not answer.
        """
        return self._table(entities, self.features(entities, at=at))

    def lacking(self, entities: Sequence[EntityKey], *, at: datetime) -> dict[EntityKey, tuple[str, ...]]:
        """Why some entities' rows are not whole at a moment, view by view: missing, or expired and how old.

        Raises:
            Unavailable: Redis does not answer.
        """
        return dict(zip(entities, self.features(entities, at=at).lacking, strict=True))

    def read_with_moments(self, entities: Sequence[EntityKey]) -> tuple[pa.Table, dict[str, list[datetime | None]]]:
        """As `read`, whatever has expired, and each entity's event time by view; None where it has no row.

        Raises:
            Unavailable: Redis does not answer.
        """
        found = self.features(entities)
        return self._table(entities, found), {rows.view.name: rows.moments for rows in found.views}

    def _table(self, entities: Sequence[EntityKey], found: Features) -> pa.Table:
        import pyarrow as pa

        keys = pa.int64() if self._pipeline.partitions.key_type is int else pa.string()
        table = {self._pipeline.entity: pa.array(entities, keys)}
        for view in self._reader.plan.views:
            narrow = {column.name for column in view.packed if column.type == "FLOAT"}
            for feature, name in zip(view.features, view.columns, strict=True):
                numbers = found.columns[name].astype(np.float32 if feature in narrow else np.float64)
                table[name] = pa.array(numbers, from_pandas=True)  # NaN is what is missing, and becomes a null
        if self._dated:
            newest = found.newest_unobserved
            table[NEWEST_AT] = pa.array(newest // 1_000_000, mask=newest == NEVER).cast(pa.timestamp("s", tz="UTC"))
        return pa.table(table)

    def push(self, rows: pa.Table) -> None:
        """Write observations into Redis; each replaces its entity's row unless that is newer.

        Args:
            rows: entity, `event_timestamp` (with a time zone) and the observation view's columns;
                `created_timestamp`, if rows say when they were made: of one event time the later made one stays.

        Raises:
            FeatureError: a column is absent, or no view of the service has a push source.
            Unavailable: Redis does not answer.
        """
        if self._pushed is None:
            raise FeatureError(f"no view of {self._pipeline.features} has a PushSource: declare one in its Feast file")
        layout, keys = self._pushed
        names = (self._pipeline.entity, EVENT_TIMESTAMP, *(column.name for column in layout.columns))
        absent = [name for name in names if name not in rows.column_names]
        if absent:
            raise FeatureError(f"pushed rows have no column {', '.join(absent)}: make them with observation_row")
        if not rows.num_rows:
            return
        created = np.full(rows.num_rows, micros_of(utc_now())) if self._dates else None
        if CREATED_TIMESTAMP in rows.column_names:
            created = micros(rows[CREATED_TIMESTAMP], layout.view)
        values = encode(layout, rows, micros(rows[EVENT_TIMESTAMP], layout.view), created)
        with redis_errors():
            entities = keys.of(rows[self._pipeline.entity].to_pylist())
            put_if_newer(self._redis, layout, entities, values, ties_replace=True, expire_seconds=self._forgotten_after)


def open_redis(url: str) -> Any:
    """A client that gives up soon, for who calls decides how to wait; nothing is connected yet.

    Raises:
        UsageError: the URL cannot be read.
    """
    import redis
    from redis.backoff import ExponentialBackoff
    from redis.retry import Retry

    return redis.Redis(
        **redis_address(url).need_files().client(),
        socket_timeout=REDIS_SECONDS_MAX,
        socket_connect_timeout=REDIS_SECONDS_MAX,
        retry=Retry(ExponentialBackoff(cap=RETRY_SECONDS_MAX, base=RETRY_SECONDS_MAX / 4), RETRIES_MAX),
    )


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
