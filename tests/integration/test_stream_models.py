"""Corrections go on across a model change: real broker, stores and registry; worker and sink in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from almanac.clock import format_time, utc_now
from almanac.ladder import Answer, Source, Terms, climb
from almanac.pipeline import Pipeline
from almanac.registry import Registry
from almanac.settings import Settings, load_settings
from features.online import observation_row
from serving_cache.lookup.postgres_place import PostgresPlace
from serving_cache.lookup.redis_place import RedisPlace
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.rollback import roll_back
from serving_cache.sync import rebuild_redis, sync_redis
from streaming.process import Crew, follow
from streaming.publish import publish
from streaming.report import Report
from streaming.sink import Overlays, Sink
from streaming.topics import ensure_topics
from streaming.worker import Surroundings, Worker
from tests.generations import new_name, staged_parts, start_of
from tests.lookups import unused_port
from tests.streams import FeaturesInMemory, event, eventually, read_topic, register_model, tiny_pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),  # of Feast's own imports
]

BIAS = {1: 0.0, 2: 50.0}
"""What each version adds, so that values tell who made them."""
CELL = 3


@dataclass
class Changing:
    """A stream whose pipeline's model changes."""

    pipeline: Pipeline
    settings: Settings
    store: PostgresStore
    cache: RedisStore
    worker: Worker
    crew: Crew = field(default_factory=Crew)
    published: int = 0

    def model(self, version: int) -> str:
        return f"{self.pipeline.name}-v{version}"

    def publish(self, version: int, as_of: datetime) -> None:
        """A generation by a version, in both stores."""
        self.published += 1
        start = start_of(self.pipeline, f"run {self.published}", as_of, model=self.model(version))
        attempt = self.store.begin_generation(self.pipeline, start, now=utc_now())
        self.store.stage(attempt, staged_parts(self.pipeline, 200.0 + version, as_of))
        self.store.publish(attempt, self.pipeline, now=utc_now())
        sync_redis(self.pipeline, self.store, self.cache)

    def scores_with(self, *versions: int) -> None:
        """Wait until the worker does."""
        models = [self.model(version) for version in versions]
        eventually(lambda: [model.id for model in self.worker._models._models] == models)

    def send(self, value: float) -> datetime:
        """An event of now, and wait until its overlays are in both stores, one for each model that is in use."""
        moment = utc_now()
        publish([event(CELL, value, moment)], self.pipeline, self.settings)
        self.has_arrived(moment, {model.id for model in self.worker._models._models})
        return moment

    def has_arrived(self, moment: datetime, models: set[str]) -> None:
        """Wait until Redis, which the sink writes last, has the overlays of an event by these models."""

        def arrived() -> bool:
            found = self.cache.overlays(self.pipeline.name, str(CELL))
            return all(model in found and found[model].as_of == moment for model in models)

        eventually(arrived)

    def answer(self) -> Answer:
        """What a lookup answers, by both places alike but for their names."""

        async def ask() -> list[Answer]:
            found = []
            for place in (RedisPlace(str(self.settings.redis_url), limit_seconds=10.0),
                          PostgresPlace(str(self.settings.postgres_url), limit_seconds=10.0)):  # fmt: skip
                reading = await place.read(self.pipeline, [CELL])
                await place.close()
                decision = climb(reading.entities[CELL].candidates, Terms.of(self.pipeline), utc_now())
                assert isinstance(decision, Answer)
                found.append(decision)
            return found

        first, second = asyncio.run(ask())
        assert (first.candidate.model, first.candidate.values, first.candidate.as_of, first.reasons) == (
            second.candidate.model, second.candidate.values, second.candidate.as_of, second.reasons,
        )  # fmt: skip
        return first

    def is_corrected(self, version: int, value: float, moment: datetime) -> None:
        """Whether the answer is this version's prediction of an event, and has nothing to explain."""
        found = self.answer()
        assert (found.candidate.source, found.candidate.model) == (Source.STREAM, self.model(version))
        assert (found.candidate.as_of, found.reasons) == (moment, ())
        assert found.candidate.values["t2m_1h"] == pytest.approx(value + 1 + BIAS[version], abs=0.01)

    def written(self, moment: datetime) -> list[tuple[str, bool]]:
        """Of an event: each model that predicted it, and whether readers were answered by that."""
        records = read_topic(self.settings, self.pipeline.predictions_topic)
        bodies = [json.loads(record.value or b"") for record in records]
        return [(body["model"], body["answers"]) for body in bodies if body["as_of"] == format_time(moment)]


@pytest.fixture
def changing(postgres_url: str, redis_url: str, kafka_bootstrap: str, tmp_path: Path) -> Iterator[Changing]:
    pipeline = tiny_pipeline(new_name())
    settings = load_settings(
        state_dir=tmp_path, postgres_url=postgres_url, redis_url=redis_url, kafka_bootstrap=kafka_bootstrap
    )
    ensure_topics(pipeline, settings)
    migrate(postgres_url, [pipeline])
    register_model(settings, pipeline, BIAS[1])
    crew = Crew()
    with PostgresStore(postgres_url) as store, RedisStore(redis_url) as cache, PostgresStore(postgres_url) as record:
        answering = follow(pipeline, settings, crew)
        around = Surroundings(online=FeaturesInMemory, observation_row=observation_row, answering=answering)
        on = Changing(pipeline, settings, store, cache, Worker(pipeline, settings, around), crew)
        on.publish(1, utc_now() - timedelta(minutes=30))
        sink = Sink(pipeline.predictions_topic, f"{pipeline.name}-overlays", settings, Report("overlays"))
        crew.start("worker", lambda: on.worker.run(crew.stop))
        crew.start("overlays", lambda: sink.run(Overlays(pipeline, record, cache, Report("overlays")), crew.stop))
        try:
            yield on
        finally:
            crew.stop.set()
            assert crew.join()
    assert crew.failures == []


def test_corrections_go_on_while_the_alias_moves_a_generation_is_published_and_one_is_gone_back_to(
    changing: Changing,
) -> None:
    changing.scores_with(1)
    before = changing.send(280.0)
    changing.is_corrected(1, 280.0, before)
    register_model(changing.settings, changing.pipeline, BIAS[2])  # which the alias names, as after a promotion
    at_once = utc_now()
    publish([event(CELL, 281.0, at_once)], changing.pipeline, changing.settings)
    changing.has_arrived(at_once, {changing.model(1)})
    changing.is_corrected(1, 281.0, at_once)  # the alias moved, the generation did not

    changing.scores_with(1, 2)
    both = changing.send(282.0)
    changing.is_corrected(1, 282.0, both)
    assert changing.written(both) == [(changing.model(1), True), (changing.model(2), False)]
    assert len(changing.written(before)) == 1  # scored twice only while it is of use
    rebuild_redis(changing.pipeline, changing.store, changing.cache)  # Redis was lost meanwhile
    changing.publish(2, utc_now() - timedelta(minutes=10))
    changing.is_corrected(2, 282.0, both)  # the swap finds its overlays

    changing.scores_with(2)
    alone = changing.send(283.0)
    assert changing.written(alone) == [(changing.model(2), True)]
    assert roll_back(changing.pipeline, changing.store, changing.cache)[1] == ""
    found = changing.answer()
    assert (found.candidate.model, found.candidate.as_of) == (changing.model(1), both)
    assert found.reasons == (
        f"the stream's prediction as of {format_time(alone)} is newer, but by {changing.model(2)}, "
        f"the current generation by {changing.model(1)}",
    )
    changing.scores_with(1, 2)  # the alias stays where it was
    back = changing.send(284.0)
    changing.is_corrected(1, 284.0, back)
    assert changing.written(back) == [(changing.model(1), True), (changing.model(2), False)]
    Registry(changing.settings.models_dir).set_alias(changing.pipeline.name, "champion", 1)
    changing.scores_with(1)


def test_a_worker_that_starts_while_postgres_is_away_asks_redis_and_keeps_what_it_knew(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    pipeline = tiny_pipeline(new_name())
    away = urlunsplit(urlsplit(postgres_url)._replace(netloc=f"almanac@127.0.0.1:{unused_port()}"))
    nowhere = f"redis://127.0.0.1:{unused_port()}"
    migrate(postgres_url, [pipeline])
    settings = load_settings(state_dir=tmp_path, postgres_url=postgres_url, redis_url=redis_url)
    versions = [register_model(settings, pipeline, bias) for bias in BIAS.values()]
    with PostgresStore(postgres_url) as store, RedisStore(redis_url) as cache:
        attempt = store.begin_generation(pipeline, start_of(pipeline, "run", model=versions[0]), now=utc_now())
        store.stage(attempt, staged_parts(pipeline, 280.0))
        store.publish(attempt, pipeline, now=utc_now())
        sync_redis(pipeline, store, cache)
    for urls, models in (
        ((away, redis_url), versions),
        ((postgres_url, nowhere), versions),
        ((away, nowhere), versions[1:]),
    ):
        given = settings.model_copy(update={"postgres_url": urls[0], "redis_url": urls[1]})
        crew = Crew()
        answering = follow(pipeline, given, crew)
        around = Surroundings(online=FeaturesInMemory, observation_row=observation_row, answering=answering)
        worker = Worker(pipeline, given, around)
        worker._warm_model()
        assert [model.id for model in worker._models._models] == models
        assert ("cannot be read" in worker.report.lack) == (len(models) == 1)
        crew.stop.set()
        assert crew.join()
