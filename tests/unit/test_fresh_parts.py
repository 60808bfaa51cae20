"""Fresh computation without servers: deadlines, slots, coalescing, one bad entity among good ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest

from almanac.errors import ModelError, PredictionError
from almanac.ladder import Candidate, Compute, Source, Terms, Unmade
from almanac.partitioning import EntityKey
from almanac.pipeline import Fresh, Pipeline
from almanac.steady import Moment
from features.online_reading import Reader
from serving_cache.lookup.fresh import FreshComputation
from serving_cache.lookup.online import Read
from serving_cache.lookup.places import Guarded, PlaceDown
from serving_cache.lookup.predicting import Made, Question, predict
from serving_cache.records import FRESH_TOPIC, OverlayRecord
from tests.fresh import COLUMNS, packed, plan_for
from tests.generations import bucket_pipeline, grid_pipeline

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SOON = timedelta(seconds=20)  # long enough for any machine
PIPELINE = grid_pipeline("small", fresh=Fresh(deadline=SOON, concurrency=2))
READER = Reader(plan_for(PIPELINE))
WISH = Compute(model="weather-v1", newer_than=None)


def row(t2m: float | None = 280.0, age: timedelta = timedelta(minutes=10), **ages: timedelta | None) -> list[Any]:
    """What Redis answers for one entity; `history=None` for a view that is missing."""
    history = ages.get("history", age)
    observed, before, position = READER.layouts
    return [
        packed(observed, NOW - age, t2m),
        None if history is None else packed(before, NOW - history, 2.0),
        packed(position, NOW - timedelta(days=900), 50.0),
    ]


class Adds:
    """A model: every output is t2m + 1; NaN where t2m is 13."""

    model_id = "weather-v1"
    inputs = COLUMNS

    def __init__(self) -> None:
        self.rows: list[int] = []

    def usable(self, name: str, values: Any) -> Any:
        return np.isfinite(values)

    def score(self, features: Any) -> dict[str, Any]:
        self.rows.append(len(features["t2m"]))
        if (features["t2m"] == 13).any():
            raise PredictionError("model weather-v1 answered NaN")
        return {name: (features["t2m"] + 1).astype(np.float32) for name in PIPELINE.output_names}


class Online:
    """Online features that come when `gate` is open, or not at all."""

    name = "redis"
    limit_seconds = 60.0

    def __init__(self, down: bool = False) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.down = down
        self.reads: list[Sequence[EntityKey]] = []

    async def read(self, service: str, entities: Sequence[EntityKey]) -> Read:
        self.reads.append(entities)
        if self.down:
            raise PlaceDown("redis cannot be reached")
        await self.gate.wait()
        return Read(READER, {entity: row() for entity in entities})

    async def close(self) -> None:
        pass


class Loaded:
    """Models that are loaded, or cannot be."""

    def __init__(self, scorer: Adds, error: ModelError | None = None) -> None:
        self.scorer, self.error, self.gate = scorer, error, asyncio.Event()
        self.gate.set()

    async def get(self, pipeline: Pipeline, model: str | None) -> Adds:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.scorer

    async def close(self) -> None:
        pass


class Kept:
    """What was offered for writing back."""

    def __init__(self) -> None:
        self.records: list[OverlayRecord] = []

    def offer(self, pipeline: str, records: Sequence[OverlayRecord]) -> None:
        self.records += records

    async def close(self) -> None:
        pass


class Noon:
    """A clock that stands still."""

    def now(self) -> Moment:
        return Moment(NOW)


class World:
    """A computation over doubles."""

    def __init__(self, **changes: Any) -> None:
        self.online = changes.get("online", Online())
        self.scorer = Adds()
        self.models = Loaded(self.scorer, changes.get("error"))
        self.kept = Kept()
        self.made = FreshComputation(Guarded(self.online), self.models, self.kept, Noon())  # type: ignore[arg-type]

    async def ask(
        self, *entities: EntityKey, pipeline: Pipeline = PIPELINE, wish: Compute = WISH
    ) -> dict[EntityKey, Made]:
        began = asyncio.get_running_loop().time()
        return await self.made.compute(pipeline, dict.fromkeys(entities, wish), Terms.of(pipeline), began)


def hurried(milliseconds: int) -> Pipeline:
    return replace(PIPELINE, fresh=Fresh(deadline=timedelta(milliseconds=milliseconds), concurrency=1))


def test_a_hundred_requests_at_once_lead_to_one_computation() -> None:
    async def run() -> None:
        world = World()
        answers = await asyncio.gather(*(world.ask(17) for _ in range(100)))
        assert world.scorer.rows == [1]
        assert world.online.reads == [[17]]
        assert len(world.kept.records) == 1
        assert {id(answer[17]) for answer in answers} == {id(answers[0][17])}
        await world.made.close()

    asyncio.run(run())


def test_overlapping_requests_compute_only_what_nobody_has_in_hand() -> None:
    async def run() -> None:
        world = World()
        one, two = await asyncio.gather(world.ask(1, 2, 3), world.ask(3, 4))
        assert world.online.reads == [[1, 2, 3], [4]]
        assert one[3] is two[3]
        assert all(isinstance(found, Candidate) for found in (one | two).values())
        other = await world.ask(1, wish=replace(WISH, model="weather-v2"))  # another model is another computation
        assert other[1] is not one[1]
        await world.made.close()

    asyncio.run(run())


def test_what_is_written_back_loses_a_tie_to_the_stream() -> None:
    async def run() -> None:
        world = World()
        found = (await world.ask(17))[17]
        assert isinstance(found, Candidate)
        assert (found.source, found.as_of, found.computed_at) == (Source.FRESH, NOW - timedelta(minutes=10), NOW)
        assert dict(found.values) == dict.fromkeys(PIPELINE.output_names, 281.0)
        (record,) = world.kept.records
        assert (record.entity, record.model, record.as_of, record.values) == (
            "17", "weather-v1", found.as_of, dict(found.values),
        )  # fmt: skip
        assert record.is_fresh
        assert record.sequence < (record.as_of, "a", 0, 0)
        assert record.topic == FRESH_TOPIC
        await world.made.close()

    asyncio.run(run())


def test_a_deadline_is_kept_and_the_computation_goes_on_for_the_next_request() -> None:
    async def run() -> None:
        world = World()
        world.online.gate.clear()
        assert (await world.ask(17, pipeline=hurried(30)))[17] == Unmade(
            reason="not done within its deadline of 30 ms", passing=True
        )
        assert world.kept.records == []
        joined = asyncio.create_task(world.ask(17))
        await asyncio.sleep(0)
        world.online.gate.set()
        assert isinstance((await joined)[17], Candidate)
        assert world.online.reads == [[17]]
        assert len(world.kept.records) == 1
        await world.made.close()

    asyncio.run(run())


def test_waiting_for_a_slot_counts_to_the_deadline() -> None:
    async def run() -> None:
        world = World()
        world.online.gate.clear()
        first = asyncio.create_task(world.ask(1, pipeline=replace(PIPELINE, fresh=Fresh(deadline=SOON, concurrency=1))))
        while not world.online.reads:
            await asyncio.sleep(0)
        assert (await world.ask(2, pipeline=hurried(30)))[2] == Unmade(reason="all 1 slots busy", passing=True)
        world.online.gate.set()
        assert isinstance((await first)[1], Candidate)
        assert isinstance((await world.ask(2))[2], Candidate)  # the slot is free again
        await world.made.close()

    asyncio.run(run())


def test_who_joins_a_computation_waits_until_his_own_deadline_not_the_first_ones() -> None:
    async def run() -> None:
        world = World()
        world.models.gate.clear()
        first = asyncio.ensure_future(world.ask(1, pipeline=hurried(30)))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(world.ask(1))
        loading = Unmade(reason="the model weather-v1 is still being loaded", passing=True)
        assert (await first)[1] == loading
        world.models.gate.set()
        assert isinstance((await second)[1], Candidate)
        assert world.scorer.rows == [1]  # it was one computation
        await world.made.close()

    asyncio.run(run())


def test_who_comes_when_the_first_ones_deadline_has_just_passed_begins_a_computation_of_his_own() -> None:
    async def run() -> None:
        world = World()
        world.models.gate.clear()
        first = asyncio.ensure_future(world.ask(1, pipeline=hurried(30)))
        await asyncio.sleep(0)
        (flight,) = world.made._flights.values()
        while not flight.job.over:  # its limit has ended it, and nobody was told yet
            await asyncio.sleep(0)
        assert not flight.outcome.done()
        second = asyncio.ensure_future(world.ask(1))
        await asyncio.sleep(0)
        world.models.gate.set()
        assert isinstance((await second)[1], Candidate)
        assert isinstance((await first)[1], Unmade)
        assert world.made._flights == {}
        await world.made.close()

    asyncio.run(run())


def test_who_wants_newer_data_than_the_first_one_or_is_content_with_older_is_answered_for_himself() -> None:
    async def run() -> None:
        world = World()
        nothing_helps = replace(WISH, newer_than=NOW)
        first, second = await asyncio.gather(world.ask(17, wish=nothing_helps), world.ask(17))
        assert isinstance(first[17], Unmade)
        assert isinstance(second[17], Candidate)
        await world.made.close()

    asyncio.run(run())


def test_a_model_that_is_still_being_loaded_is_said_to_be() -> None:
    async def run() -> None:
        world = World()
        world.models.gate.clear()
        found = (await world.ask(1, pipeline=hurried(30)))[1]
        assert found == Unmade(reason="the model weather-v1 is still being loaded", passing=True)
        await world.made.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"online": Online(down=True)}, "redis cannot be reached"),
        ({"error": ModelError("model weather-v1: model.onnx was changed")}, "model weather-v1: model.onnx was changed"),
    ],
)
def test_what_is_down_is_a_reason(changes: dict[str, Any], reason: str) -> None:
    async def run() -> None:
        world = World(**changes)
        found = await world.ask(1, 2)
        assert {made.reason for made in found.values() if isinstance(made, Unmade)} == {reason}
        assert len(found) == 2
        await world.made.close()

    asyncio.run(run())


def test_an_unforeseen_mistake_is_told_and_holds_no_slot(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        world = World()
        world.scorer.score = lambda features: 1 / 0  # type: ignore[method-assign]
        for _ in range(3):
            found = (await world.ask(1))[1]
            assert isinstance(found, Unmade)
            assert "unforeseen error (ZeroDivisionError)" in found.reason
        await world.made.close()

    asyncio.run(run())


def asked(**wishes: Compute) -> Question:
    entities = {int(name.removeprefix("e")): wish for name, wish in wishes.items()}
    return Question(PIPELINE, entities, Terms.of(PIPELINE), NOW)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(history=timedelta(hours=7)), "no usable online features: history has expired (7 h old, usable for 6 h)"),
        (row(history=None), "no usable online features: history is missing"),
        ([None] * 3, "no usable online features: seen is missing, history is missing, position is missing"),
        (row(t2m=None), "no usable online features: t2m null"),
        (row(t2m=float("nan")), "no usable online features: t2m null"),
        (row(t2m=13.0), "model weather-v1 answered NaN"),
        ([row()[0][:-1], *row()[1:]], "a row of view seen in Redis is damaged"),
        ([b"\xff", *row()[1:]], "a row of view seen in Redis is damaged"),
        ([row()[1], *row()[1:]], "rows of view seen are packed in a layout"),
    ],
)
def test_one_bad_entity_does_not_spoil_the_others(bad: list[Any], reason: str) -> None:
    found = predict(asked(e1=WISH, e2=WISH, e3=WISH), READER, {1: row(), 2: bad, 3: row(270.0)}, Adds())
    assert isinstance(found[2], Unmade)
    assert found[2].reason.startswith(reason)
    assert [found[cell].values["t2m_1h"] for cell in (1, 3)] == [281.0, 271.0]  # type: ignore[union-attr]


def test_features_no_newer_than_the_candidate_are_not_computed_with() -> None:
    as_of = NOW - timedelta(minutes=10)
    scorer = Adds()
    wishes = {"e1": replace(WISH, newer_than=as_of), "e2": replace(WISH, newer_than=as_of - timedelta(seconds=1))}
    found = predict(asked(**wishes), READER, {1: row(), 2: row()}, scorer)
    assert found[1] == Unmade(reason="the online features, 10 min old, are no newer than what there is")
    assert isinstance(found[2], Candidate)
    assert scorer.rows == [1]


@pytest.mark.parametrize("ttl", [None, 1e9])
def test_features_that_are_too_old_to_be_used_at_all_are_not_computed_with(ttl: float | None) -> None:
    found = predict(asked(e1=WISH), Reader(replace_ttl(ttl)), {1: row(age=timedelta(hours=25))}, Adds())
    assert found[1] == Unmade(reason="the online features have expired: they are 25 h old")


def replace_ttl(seconds: float | None) -> Any:
    plan = plan_for(PIPELINE)
    views = tuple(msgspec.structs.replace(view, ttl_seconds=seconds) for view in plan.views)
    return msgspec.structs.replace(plan, views=views)


def test_an_entity_whose_key_the_plan_cannot_have_is_told_so() -> None:
    users = bucket_pipeline("users", fresh=Fresh())
    question = Question(users, {"ann": WISH, 7: WISH}, Terms.of(users), NOW)
    found = predict(question, Reader(plan_for(users)), {7: row()}, Adds())
    assert found["ann"] == Unmade(reason="this key is no int64, as user_id is")
    assert isinstance(found[7], Candidate)
