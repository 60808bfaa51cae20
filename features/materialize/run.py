"""Materialization: the newest offline features of each entity brought into the online store.

1. plan: for each view of the FeatureService, what its watermarks leave to read, cut into shards of partitions;
2. check definition, schemas, keys and times of what is to be read: what is wrong is said before anything is written;
3. read the newest row of each entity, pack, write if newer, a batch at a time;
4. look at the definition again: a view that was changed under the run leaves no watermark;
5. put the token beside the values, then move the watermarks of the shard's partitions on.

A run that is killed leaves the shards that were done, and the next one goes on with the others. Whatever is
written twice, by two runs or by the stream at the same time, the newest event time stays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from almanac.clock import format_time, need_utc, utc_now
from almanac.closing import Closing
from almanac.errors import FeatureError
from almanac.partitioning import Buckets, Partitioning
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from features.materialize import watermarks
from features.materialize.plan import Asked, File, Reading, Shard, Watermark, cut, due, readings, start_of
from features.materialize.progress import Lines, Progress
from features.materialize.source import (
    Found,
    Keys,
    Source,
    check_files,
    examine,
    keys_between,
    newest,
    partitions_of,
    source_of,
)
from features.materialize.writer import Batch, PackedWriter, Writer
from features.online import open_redis, redis_errors, views_of
from features.store import key_ttl_seconds, open_service, registry_errors

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureView

log = logging.getLogger(__name__)

WRITE_ROWS = 8_000
"""Rows that are packed and written at a time, in one trip: what is in memory beside the batch that was read."""


@dataclass
class Report:
    """What a run came to.

    Args:
        rows: newest rows that were read and handed to the online store.
        kept: of these, rows that were not newer than what was there.
        shards: shards that had something to do.
        seconds: how long it took.
    """

    rows: int = 0
    kept: int = 0
    shards: int = 0
    seconds: float = 0.0
    views: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Work:
    """A shard with the files it reads and what is in them."""

    shard: Shard
    files: Sequence[File]
    readings: Sequence[Reading]


def materialize(pipeline: Pipeline, settings: Settings, as_of: datetime) -> int:
    """Bring the newest row of each entity and view at or before `as_of` into Redis; a newer one there stays.

    Only what the watermarks leave is read; without a Postgres there are none, and all is read that has not expired.

    Returns:
        Rows handed to Redis, over all views.

    Raises:
        FeatureError: definitions, files or rows are not what they should be; nothing was written of the view.
        Unavailable: Redis, Postgres or the registry does not answer.
    """
    with Materialization(pipeline, settings) as run:
        return run.all(Asked(until=need_utc(as_of))).rows


class Materialization(Closing):
    """The materialization of one pipeline, with its definitions read once."""

    def __init__(self, pipeline: Pipeline, settings: Settings, writer: Writer | None = None) -> None:
        """Read the definitions.

        Args:
            writer: writes to the online store; default: to that of the settings.

        Raises:
            FeatureError: the service is not registered, or a view of it cannot be materialized.
            UsageError: there is no Redis.
            Unavailable: the registry does not answer.
        """
        import duckdb

        self._pipeline, self._settings = pipeline, settings
        self._store, service = open_service(pipeline, settings)
        self._services = [service]
        with registry_errors():
            if pipeline.ranking is not None:
                self._services.append(self._store.get_feature_service(pipeline.ranking.features))
            views = [view for one in self._services for view in views_of(self._store, one)]
        self.sources = {source.view: source for source in map(self._source, views)}
        forgotten_after = key_ttl_seconds(self._store)
        self._writer: Writer = writer or PackedWriter(
            open_redis(settings.need("redis_url")), expire_seconds=forgotten_after
        )
        self._forgotten_after = None if forgotten_after is None else timedelta(seconds=forgotten_after)
        self._duckdb = duckdb.connect(":memory:")

    def close(self) -> None:
        """Give the connections back."""
        self._duckdb.close()
        self._writer.client.close()

    def all(self, asked: Asked, progress: Progress | None = None) -> Report:
        """Plan, and bring every shard, in this process.

        Raises:
            FeatureError: as `plan` and `bring`.
            Unavailable: a server does not answer; what is done is done.
        """
        told = progress or Lines()
        report, started = Report(), time.perf_counter()
        works = list(self._works(asked))
        told.expect(sum(work.shard.entities for work in works))
        for work in works:
            self._bring(work, report, told)
        self._write_plans([work.shard for work in works])
        report.seconds = time.perf_counter() - started
        return report

    def plan(self, asked: Asked) -> list[Shard]:
        """Steps 1 and 2 of every view: what is to be done, to be handed to `bring` in any process.

        Raises:
            FeatureError: definitions, files or rows are not what they should be.
            Unavailable: Redis, Postgres or the registry does not answer.
        """
        found = [work.shard for work in self._works(asked)]
        self._write_plans(found)
        return found

    def bring(self, shard: Shard, progress: Progress | None = None) -> Report:
        """Steps 2 to 5 of one shard, again as often as one likes.

        Raises:
            FeatureError: the view was changed since it was planned, or its files or rows are not what they should be.
            Unavailable: Redis, Postgres or the registry does not answer.
        """
        report, started = Report(), time.perf_counter()
        source = self.sources.get(shard.view)
        if source is None or source.definition != shard.definition:
            raise _changed(shard.view)
        files = source.files(start_of(shard.until, source.ttl), shard.until)
        work = _Work(shard, files, readings(shard, files, source.ttl))
        if work.readings:
            self._examine(source, work.readings, self._keys(source, shard))
            self._bring(work, report, progress or Lines())
        report.seconds = time.perf_counter() - started
        return report

    def _works(self, asked: Asked) -> Iterator[_Work]:
        """Steps 1 and 2; all views are looked at before the first shard is given out."""
        held: dict[str, dict[int, Watermark]] = {}
        if self._settings.postgres_url and asked.since is None:
            name, count = self._pipeline.name, self._pipeline.partitions.count
            held = watermarks.read(self._settings.postgres_url, name, list(self.sources), count)
        found: list[_Work] = []
        for source in self.sources.values():
            files = source.files(start_of(asked.until, source.ttl), asked.until)
            for shard in self._due(source, asked, held.get(source.view, {})):
                reads = readings(shard, files, source.ttl)
                if not reads:
                    continue
                entities = self._examine(source, reads, None)
                found += [_Work(piece, files, reads) for piece in cut(shard, entities)]
        yield from found

    def _due(self, source: Source, asked: Asked, held: Mapping[int, Watermark]) -> list[Shard]:
        count = self._pipeline.partitions.count
        tokens: dict[int, str] = {}
        if held:
            with redis_errors():
                tokens = watermarks.tokens(self._writer.client, self._pipeline.name, source.view, count)
        # After half the time: so a run that is late still finds every key.
        sent_before = None if self._forgotten_after is None else utc_now() - self._forgotten_after / 2
        return due(asked, source.view, source.definition, count, held, tokens, sent_before)

    def _examine(self, source: Source, reads: Sequence[Reading], own: Keys | None) -> int:
        """Step 2; returns about how many entities there are to write."""
        found: list[Found] = []
        for reading in reads:
            check_files(source, reading.files)
            found.append(examine(self._duckdb, source, self._partitions(source), reading, own))
        return sum(one.entities for one in found)

    def _bring(self, work: _Work, report: Report, progress: Progress) -> None:
        """Steps 3 to 5."""
        shard, source = work.shard, self.sources[work.shard.view]
        label = self._pipeline.shard_label(list(shard.partitions)) if len(shard.partitions) > 1 else ""
        progress.begin(f"{shard.view} {label}".strip())
        rows, written, began = 0, 0, utc_now()
        for batch in self._packed(source, work):
            with redis_errors():
                written += self._writer.put(batch)
            rows += len(batch)
            progress.advance(len(batch))
        with redis_errors():
            written += self._writer.settle()
        with registry_errors():
            now = self._store.registry.get_feature_view(shard.view, self._store.project, allow_cache=False)
        if self._source(now).definition != shard.definition:
            raise _changed(shard.view)
        if self._settings.postgres_url and shard.start is None:
            self._move(self._settings.postgres_url, work, began if shard.since is None else shard.sent_at)
        report.rows += rows
        report.kept += rows - written
        report.shards += 1
        report.views.add(shard.view)
        log.info(
            "materialized pipeline=%s view=%s partitions=%d-%d rows=%d kept=%d until=%s",
            self._pipeline.name, shard.view, shard.first, shard.last, rows, rows - written, format_time(shard.until),
        )  # fmt: skip

    def _packed(self, source: Source, work: _Work) -> Iterator[Batch]:
        """Step 3 up to the writing: the newest rows of the shard's own entities, packed, some at a time."""
        whole = len(work.shard.partitions) == self._pipeline.partitions.count
        for reading in work.readings:
            for batch in newest(source, reading, None if whole else self._keys(source, work.shard)):
                rows = batch if whole else self._own(source, work.shard, batch)
                for start in range(0, rows.num_rows, WRITE_ROWS):
                    yield self._writer.pack(source, rows.slice(start, WRITE_ROWS))

    def _own(self, source: Source, shard: Shard, batch: pa.RecordBatch) -> pa.RecordBatch:
        import pyarrow as pa

        found = partitions_of(self._partitions(source), batch[source.key])
        return batch.filter(pa.array((found >= shard.first) & (found <= shard.last)))

    def _keys(self, source: Source, shard: Shard) -> Keys | None:
        return keys_between(self._partitions(source), shard.first, shard.last)

    def _partitions(self, source: Source) -> Partitioning:
        """How a view's keys fall into partitions: items into as many buckets as there are partitions of entities."""
        entities = self._pipeline.partitions
        return entities if source.key == self._pipeline.entity else Buckets(count=entities.count)

    def _move(self, url: str, work: _Work, sent_at: datetime | None) -> None:
        """Step 5."""
        shard = work.shard
        watermark = Watermark(
            definition=shard.definition,
            through=shard.until,
            files_at=max(file.changed_at for file in work.files),
            token=watermarks.new_token(sent_at),
        )
        name = self._pipeline.name
        with redis_errors():
            watermarks.put_token(self._writer.client, name, shard.view, shard.partitions, watermark.token)
        watermarks.move(url, name, shard.view, shard.partitions, watermark)

    def _source(self, view: FeatureView) -> Source:
        versioned = self._store.config.registry.enable_online_feature_view_versioning
        return source_of(view, self._store.project, versioned=versioned)

    def _write_plans(self, shards: Sequence[Shard]) -> None:
        """An emptied Redis has the reading plan back with the features."""
        from features.reading_plans import write_plans

        if any(shard.since is None for shard in shards):
            write_plans(self._store, self._settings, self._services)


def _changed(view: str) -> FeatureError:
    return FeatureError(
        f"feature view {view} was changed while it was materialized; what is written stays newest, but its watermark "
        "was not moved: materialize again"
    )
