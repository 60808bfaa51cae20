"""What the monitor reads of one pipeline: from Postgres, and of the pointer alone from Redis when Postgres is away."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import msgspec

from almanac.clock import need_utc
from almanac.errors import AlmanacError, Unavailable
from almanac.feature_checks import Check
from almanac.pipeline import Pipeline
from almanac.quality import Sums
from serving_cache.feature_checks import FeatureChecks
from serving_cache.postgres import PostgresStore
from serving_cache.postgres_client import Client
from serving_cache.prediction_log import PredictionLog
from serving_cache.records import Pointer
from serving_cache.redis import RedisStore
from serving_cache.stage_times import StageTime, recorded_since, seconds_by_stage

ERRORS_SPAN = timedelta(days=1)
"""Predicted moments whose errors are shown."""
ERRORS_PERIOD = timedelta(minutes=1)
"""Errors change once an hour: they are read no more often than this."""
OVERLAP = timedelta(seconds=90)
"""Stage times recorded this long before the last look are read again: transactions commit late."""


class PipelineState(msgspec.Struct, frozen=True, kw_only=True):
    """One pipeline as one look found it.

    Args:
        place: `postgres`, or `redis`, which knows the pointer alone.
        pointer: None if nothing is published.
        begun_at: when the oldest generation that the record has was begun; None if there is none, or of Redis.
        generations: number of generations by state.
        partitions: number of partitions of the newest run by state.
        stage_seconds: time of the newest run's stages, by stage.
        recorded: stage times that were not seen at the look before.
        features_through: event time up to which all views' features are online; None if none was materialized.
        errors: sums by output and source over `ERRORS_SPAN`; None if they were not read at this look.
        features: the newest check of its features; None if there is none.
    """

    place: str
    pointer: Pointer | None
    begun_at: datetime | None = None
    generations: Mapping[str, int] = {}
    partitions: Mapping[str, int] = {}
    stage_seconds: Mapping[str, float] = {}
    recorded: tuple[StageTime, ...] = ()
    features_through: datetime | None = None
    errors: Mapping[tuple[str, str], Sums] | None = None
    features: Check | None = None


class Eyes:
    """Reads pipelines' states, remembering which stage times it has seen.

    Args:
        postgres_url, redis_url: where the stores are.
    """

    def __init__(self, postgres_url: str, redis_url: str) -> None:
        self._client = Client(postgres_url)
        self._store = PostgresStore(postgres_url)
        self._cache = RedisStore(redis_url)
        self._log = PredictionLog(postgres_url)
        self._checks = FeatureChecks(postgres_url)
        self._check: dict[str, tuple[datetime, Check | None]] = {}
        self._errors_at: dict[str, datetime] = {}
        self._looked: dict[str, datetime] = {}
        self._seen: dict[str, set[int]] = {}

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()
        self._log.close()
        self._checks.close()
        self._store.close()
        self._cache.close()

    def look(self, pipeline: Pipeline) -> PipelineState:
        """Read a pipeline's state from Postgres, or its pointer from Redis.

        Raises:
            Unavailable: neither answers; says what Postgres's failure was.
            AlmanacError: Postgres answers with what cannot be used.
        """
        try:
            return self._from_postgres(pipeline.name)
        except Unavailable:
            try:
                pointer = self._cache.pointer(pipeline.name)
            except AlmanacError:
                pointer = None
            if pointer is None:  # an emptied Redis does not say that nothing is published
                raise
            return PipelineState(place="redis", pointer=pointer)

    def _from_postgres(self, name: str) -> PipelineState:
        now = need_utc(self._client.query("SELECT clock_timestamp()")[0][0])
        pointer = self._store.pointer(name)
        generations = self._client.query(
            "SELECT state, count(*) FROM generations WHERE pipeline = %s GROUP BY state", (name,)
        )
        newest, begun_at = self._client.query(
            "SELECT max(generation), min(created_at) FROM generations WHERE pipeline = %s", (name,)
        )[0]
        partitions = self._client.query(
            "SELECT state, count(*) FROM ledger WHERE pipeline = %s AND generation = %s GROUP BY state", (name, newest)
        )
        return PipelineState(
            place="postgres",
            pointer=pointer,
            begun_at=None if begun_at is None else need_utc(begun_at),
            generations=dict(generations),
            partitions=dict(partitions),
            stage_seconds={} if newest is None else seconds_by_stage(self._client, name, newest),
            recorded=self._new_records(name, now),
            features_through=self._features_through(name),
            errors=self._errors(name, now),
            features=self._features(name, now),
        )

    def _features(self, name: str, now: datetime) -> Check | None:
        """The newest check, read no more often than errors are."""
        known = self._check.get(name)
        if known is None or not timedelta(0) <= now - known[0] < ERRORS_PERIOD:
            known = self._check[name] = (now, self._checks.newest(name))
        return known[1]

    def _errors(self, name: str, now: datetime) -> Mapping[tuple[str, str], Sums] | None:
        if name in self._errors_at and timedelta(0) <= now - self._errors_at[name] < ERRORS_PERIOD:
            return None
        found = self._log.errors(name, now - ERRORS_SPAN)
        self._errors_at[name] = now
        return found

    def _features_through(self, name: str) -> datetime | None:
        found = self._client.query("SELECT min(through) FROM feature_watermarks WHERE pipeline = %s", (name,))[0][0]
        return None if found is None else need_utc(found)

    def _new_records(self, name: str, now: datetime) -> tuple[StageTime, ...]:
        """Stage times since the last look; the first look finds none new, for a counter begins at zero."""
        since = self._looked.get(name, now) - OVERLAP
        found = recorded_since(self._client, name, since)
        first = name not in self._looked
        seen = self._seen.get(name, set())
        fresh = tuple(record for record in found if record.id not in seen)
        self._looked[name] = now
        self._seen[name] = {record.id for record in found}
        return () if first else fresh
