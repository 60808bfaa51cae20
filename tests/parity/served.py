"""Parity through real servers: the real declarations, real Feast definitions, models trained here, events by Kafka.

Of one pipeline, round by round, oldest first:

0. some events come late, of moments before the last round's;
1. the features of just before the round's moment are ingested and materialized, as the DAG does it;
2. the round's events go through Kafka: `python -m streaming` makes overlays, online features and the archive of them;
3. the same entities are computed afresh, by what the lookup service computes with;
4. a batch run as of the round's moment: plan, gates, score, publish;
5. the three are compared, to the bit.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from almanac.clock import format_time, utc_now
from almanac.declarations import load_pipelines
from almanac.fresh_declared import FRESH_DEADLINE_MAX, Fresh
from almanac.ladder import Candidate, Compute, Terms
from almanac.list_blocks import unpacked
from almanac.partitioning import Grid
from almanac.pipeline import Pipeline
from almanac.ranked import RankedList
from almanac.ranking_declared import ANY_ITEM
from almanac.registry import Registry
from almanac.settings import Settings, load_settings, settings
from almanac.stack.servers import running_kafka, running_postgres, running_redis
from almanac.steady import SystemClock
from features.ingest import refresh
from features.materialize.run import materialize
from features.ranked import items_at
from jobs.check import gate_features, gate_predictions
from jobs.plan import FEATURE_WINDOW, plan
from jobs.publish import clean_up, publish
from jobs.score import score_shard
from jobs.training.promotion import promote
from jobs.training.train import train
from serving_cache.lookup.__main__ import open_fresh
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.records import OverlayRecord
from streaming.applied import Applied
from streaming.connection import kafka_errors
from streaming.publish import Outgoing
from streaming.publish import publish as send
from tests.streams import ROOT, environment, eventually

AT_ONCE = 100
"""Entities of one fresh computation."""
TRIES = 20
PATIENCE_SECONDS_MAX = 900.0
"""Time that worker and sinks may take for a round on a busy machine."""
POLL_SECONDS = 0.1
STOP_SECONDS_MAX = 40
DECLARATION = """
from pipelines.{name} import {name} as _declared
from tests.parity.rounds_{name} import quick

{name} = quick(_declared, {entities})
"""


class Found(NamedTuple):
    """What one way says of an entity: the moment it speaks as of, and its values, every bit of them told apart.

    Where there is no prediction, no moment and why not.
    """

    as_of: datetime | None
    values: str


class Round(Protocol):
    """One moment, or some close to each other, and what happens at them."""

    @property
    def cutoff(self) -> datetime:
        """The batch run's."""
        ...

    @property
    def before(self) -> datetime:
        """Up to which features are brought before the events."""
        ...

    @property
    def late(self) -> Sequence[Outgoing]:
        """Events that come before the features are brought up."""
        ...

    @property
    def events(self) -> Sequence[Outgoing]:
        """Through Kafka."""
        ...

    @property
    def moments(self) -> Mapping[Any, datetime]:
        """Of each entity that is compared the moment that all three are to speak as of."""
        ...


@dataclass(frozen=True)
class Served:
    """One pipeline on servers of its own, its model trained and serving."""

    pipeline: Pipeline
    settings: Settings
    trained_at: datetime
    log: Path

    def bring_features(self, until: datetime) -> None:
        """Step 1."""
        materialize(
            self.pipeline, self.settings, refresh(self.pipeline, self.settings, until, window=FEATURE_WINDOW).as_of
        )

    def send(self, events: Sequence[Outgoing]) -> None:
        """Step 2, until worker and sinks have done their part."""
        if not events:
            return
        send(events, self.pipeline, self.settings)
        name, features = self.pipeline.name, self.pipeline.features_topic
        assert self.pipeline.stream is not None
        self._past(self.pipeline.stream.topic, f"almanac-{name}-stream")
        self._past(self.pipeline.predictions_topic, f"almanac-{name}-sink-overlays")
        self._past(features, f"almanac-{name}-sink-features")
        self._past(features, f"almanac-{name}-sink-archive")

    def streamed(self, moments: Mapping[Any, datetime]) -> dict[Any, Found]:
        """What the overlays say that the stream made, of some entities."""
        with PostgresStore(self.settings.need("postgres_url")) as store:
            records = store.overlays(self.pipeline.name, self.model, min(moments.values()) - timedelta(days=1))
        key = self.pipeline.partitions.key_type
        found = {key(record.entity): record for record in records if not record.is_fresh}
        return {entity: _found(found[entity]) for entity in moments if entity in found}

    def computed(self, moments: Mapping[Any, datetime]) -> dict[Any, Found]:
        """Step 3."""
        return asyncio.run(self._computed(list(moments)))

    def batch(self, cutoff: datetime, moments: Mapping[Any, datetime]) -> dict[Any, Found]:
        """Step 4: what the published generation says of some entities."""
        made = plan(self.pipeline, self.settings, run_key=f"parity {format_time(cutoff)}", cutoff=cutoff, now=utc_now())
        try:
            report = gate_features(self.pipeline, self.settings, made)
            for shard in made.shards_without(report.settled):
                done = score_shard(self.pipeline, self.settings, made, shard)
                assert not done.quarantined, done.quarantined
            gate_predictions(self.pipeline, self.settings, made)
            publish(self.pipeline, self.settings, made, now=utc_now())
        finally:
            clean_up(self.pipeline, self.settings, made)
        with PostgresStore(self.settings.need("postgres_url")) as store:
            manifest = store.manifest(self.pipeline.name, made.generation)
            blocks = store.blocks(self.pipeline, made.generation, sorted(manifest))
        opened = {partition: unpacked(blocks[entry.block_hash]) for partition, entry in manifest.items()}
        found = {}
        for entity, moment in moments.items():
            row = opened[self.pipeline.partitions.partition_of(entity)].row(entity)
            if row is not None:
                # Where numbers are predicted, an event after the newest hour counts as of its own moment.
                as_of = made.moment if self.pipeline.ranking is not None else moment
                values = {self.pipeline.output_names[0]: row} if isinstance(row, RankedList) else row
                found[entity] = Found(as_of, bits(values))
        return found

    def places(self) -> list[Any]:
        """What rounds are made of: the items of the range before the first, or all cells of a grid."""
        if isinstance(self.pipeline.partitions, Grid):
            return list(range(self.pipeline.partitions.cells))
        newest = refresh(self.pipeline, self.settings, self.trained_at, window=FEATURE_WINDOW).as_of
        return [key for key in items_at(self.pipeline, self.settings, newest).keys if key != ANY_ITEM]

    @property
    def model(self) -> str:
        """Id of the version that serves."""
        return Registry(self.settings.models_dir).resolve(self.pipeline.model).id

    def _past(self, topic: str, group: str) -> None:
        """Wait until a consumer group has done all that a topic holds now."""
        asked = Applied(topic, group, self.settings)
        try:
            ends, give_up_at = self._asked(asked.ends), time.monotonic() + PATIENCE_SECONDS_MAX
            while (why := self._asked(asked.behind, ends)) is not None:
                assert time.monotonic() < give_up_at, f"{why}: {self.log.read_text()[-2_000:]}"
                time.sleep(POLL_SECONDS)
        finally:
            asked.close()

    def _asked(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """What a broker answers; one that has just begun, or is busy, may not be ready."""

        def answer() -> tuple[Any]:
            with kafka_errors("the broker does not say how far a group is", self.settings):
                return (question(*arguments),)

        return eventually(answer)[0]

    async def _computed(self, entities: list[Any]) -> dict[Any, Found]:
        """As for a request that no generation and no overlay answers, and that can wait; what was late once more."""
        fresh = open_fresh(self.settings, SystemClock())
        patient = replace(self.pipeline, fresh=Fresh(deadline=FRESH_DEADLINE_MAX))
        terms = Terms.of(self.pipeline)
        found: dict[Any, Found] = {}
        why: dict[Any, str] = {}
        try:
            for _ in range(TRIES):
                left = [entity for entity in entities if entity not in found]
                for start in range(0, len(left), AT_ONCE):
                    wishes = {one: Compute(model=self.model, newer_than=None) for one in left[start : start + AT_ONCE]}
                    began = asyncio.get_running_loop().time()
                    for entity, made in (await fresh.compute(patient, wishes, terms, began)).items():
                        if isinstance(made, Candidate):
                            found[entity] = _found(made)
                        else:
                            why[entity] = made.reason
                if len(found) == len(entities):
                    break
        finally:
            await fresh.close()
        for entity in why.keys() - found.keys():
            found[entity] = Found(None, why[entity])
        return found


def _found(made: Candidate | OverlayRecord) -> Found:
    assert made.as_of is not None
    return Found(made.as_of, bits(made.values))


def bits(values: Mapping[str, Any]) -> str:
    """Values so that any two that differ in a bit differ here: Python writes a float as the shortest that is it."""
    return repr(
        {
            name: (value.items, value.scores, sorted(value.attributes.items()))
            if isinstance(value, RankedList)
            else float(value)
            for name, value in sorted(values.items())
        }
    )


def agree(served: Served, rounds: Sequence[Round], told: Callable[[str], None]) -> list[str]:
    """All rounds; a line for each difference."""
    unlike: list[str] = []
    compared = 0
    for number, one in enumerate(rounds, start=1):
        served.send(one.late)
        served.bring_features(one.before)
        served.send(one.events)
        moments = one.moments
        stream, fresh = served.streamed(moments), served.computed(moments)
        batch = served.batch(one.cutoff, moments)
        for entity, moment in moments.items():
            said = {"batch": batch.get(entity), "stream": stream.get(entity), "fresh": fresh.get(entity)}
            compared += 1
            if None in said.values() or len(set(said.values())) > 1 or batch[entity].as_of != moment:
                unlike.append(f"{entity} as of {format_time(moment)}: {said}")
        first = f": {unlike[0]}" if unlike else ""
        told(f"{number} of {len(rounds)} moments, {compared:,} compared, {len(unlike):,} unlike{first}")
    return unlike


@contextmanager
def served(declared: Pipeline, of: Any, entities: int, now: datetime) -> Iterator[Served]:
    """Servers, a pipeline on them with a trained model, and the process of its stream.

    Args:
        of: the module of the pipeline's rounds, which says how it is made quick, and when its model is trained.
        entities: how many are compared.
    """
    trained_at = of.trained_at(now)
    with tempfile.TemporaryDirectory(prefix="almanac-parity-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres has a user of its own
        for part in ("redis", "state"):
            (folder / part).mkdir()
        with (
            running_postgres(folder / "postgres") as postgres_url,
            running_redis(folder / "redis") as redis_url,
            running_kafka(folder / "kafka", settings().cache_dir) as kafka,
        ):
            at = load_settings(
                state_dir=folder / "state", postgres_url=postgres_url, redis_url=redis_url, kafka_bootstrap=kafka
            )
            variables = environment(at, declared.name, DECLARATION.replace("{entities}", str(entities)))
            (pipeline,) = load_pipelines(variables["ALMANAC_PIPELINES"]).values()
            migrate(postgres_url, [pipeline])
            version = train(pipeline, at, now=trained_at, progress=lambda step: None)
            promote(pipeline, at, version.version, overrule=True)
            found = Served(pipeline, at, trained_at, folder / "stream.log")
            found.bring_features(trained_at)
            with _streaming(variables, found.log):
                yield found


@contextmanager
def _streaming(variables: dict[str, str], log: Path) -> Iterator[None]:
    """Worker and sinks, as `almanac up` runs them."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "streaming"], cwd=ROOT, env=variables, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
