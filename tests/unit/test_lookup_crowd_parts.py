"""What keeps a crowd of callers from harming each other: reads made together, one voice about a place that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from almanac.ladder import Candidates
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from serving_cache.lookup.batching import READS_AT_ONCE, Batches
from serving_cache.lookup.breaker import CALM_SECONDS, FAILURES_BEFORE_OPEN, Breaker
from serving_cache.lookup.places import (
    EntityReading,
    Guarded,
    PlaceBusy,
    PlaceDown,
    PlaceUnusable,
    Reading,
)
from tests.generations import grid_pipeline

GRID = grid_pipeline("grid")
CALLERS = 200


class Store:
    """Counts how often it is read; fails where told."""

    name = "postgres"
    limit_seconds = 60.0

    def __init__(self, *, bad: EntityKey | None = None, error: Exception | None = None) -> None:
        self.reads: list[list[EntityKey]] = []
        self.bad, self.error = bad, error
        self.turn = asyncio.Event()

    async def read(self, pipeline: Pipeline, entities: Sequence[EntityKey]) -> Reading:
        self.reads.append(list(entities))
        began = len(self.reads)
        await self.turn.wait()
        if self.error is not None:
            raise self.error
        if self.bad in entities:
            raise PlaceUnusable(f"the list of {self.bad} is none")
        nothing = EntityReading(candidates=Candidates())
        return Reading(epoch=began, entities=dict.fromkeys(entities, nothing))


async def outcomes(store: Store, asked: Sequence[Sequence[EntityKey]]) -> list[Reading | BaseException]:
    """What each caller gets who asks at the same moment."""
    batches = Batches(store.read)
    tasks = [asyncio.ensure_future(batches.read(GRID, entities)) for entities in asked]
    await asyncio.sleep(0)
    store.turn.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_a_crowd_asks_few_questions_and_each_caller_gets_his_own_answer() -> None:
    async def run() -> None:
        store = Store()
        asked = [[number, number + 1] for number in range(CALLERS)]
        found = await outcomes(store, asked)
        assert [list(each.entities) for each in found] == asked  # type: ignore[union-attr]
        assert len(store.reads) <= READS_AT_ONCE + 1
        assert [len(set(read)) for read in store.reads] == [len(read) for read in store.reads]

    asyncio.run(run())


def test_who_comes_while_a_read_is_under_way_gets_one_that_began_after_he_asked() -> None:
    async def run() -> None:
        store = Store()
        batches = Batches(store.read)
        tasks = []
        for _ in range(READS_AT_ONCE + 3):
            tasks.append(asyncio.ensure_future(batches.read(GRID, [1])))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert len(store.reads) == READS_AT_ONCE
        store.turn.set()
        found = await asyncio.gather(*tasks)
        assert [each.epoch for each in found] == [1, 2, 3, 4, 5, 5, 5]

    asyncio.run(run())


def test_one_callers_bad_entity_costs_the_others_nothing() -> None:
    async def run() -> None:
        found = await outcomes(Store(bad=150), [[number] for number in range(CALLERS)])
        wrong = [number for number, each in enumerate(found) if isinstance(each, PlaceUnusable)]
        assert wrong == [150]
        assert not [each for number, each in enumerate(found) if number != 150 and isinstance(each, BaseException)]

    asyncio.run(run())


def test_a_store_that_falls_silent_while_callers_are_read_for_one_by_one_costs_one_time_limit() -> None:
    class Falls(Store):
        async def read(self, pipeline: Pipeline, entities: Sequence[EntityKey]) -> Reading:
            await super().read(pipeline, entities)
            if len(entities) > 1:
                raise PlaceUnusable("postgres lacks a table")
            raise PlaceDown("postgres did not answer within 1000 ms")

    async def run() -> None:
        store = Falls()
        found = await outcomes(store, [[number] for number in range(CALLERS)])
        assert {(type(each), str(each)) for each in found} == {(PlaceDown, "postgres did not answer within 1000 ms")}
        assert len({id(each) for each in found}) == CALLERS
        assert len(store.reads) <= 3 * READS_AT_ONCE

    asyncio.run(run())


def test_who_left_is_not_read_for_alone() -> None:
    class Bad(Store):
        async def read(self, pipeline: Pipeline, entities: Sequence[EntityKey]) -> Reading:
            if len(entities) > 1:
                for task in tasks[READS_AT_ONCE:-1]:
                    task.cancel()
            return await super().read(pipeline, entities)

    tasks: list[asyncio.Task[Reading]] = []

    async def run() -> None:
        store = Bad(bad=CALLERS - 1)
        batches = Batches(store.read)
        tasks.extend(asyncio.ensure_future(batches.read(GRID, [number])) for number in range(CALLERS))
        await asyncio.sleep(0)
        store.turn.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[-1], PlaceUnusable)
        assert len(store.reads) <= 2 * READS_AT_ONCE + 2

    asyncio.run(run())


def test_all_are_told_why_a_store_is_down_and_those_who_left_are_not_missed() -> None:
    async def run() -> None:
        store = Store(error=PlaceDown("postgres cannot be reached", "it is starting up"))
        batches = Batches(store.read)
        tasks = [asyncio.ensure_future(batches.read(GRID, [number])) for number in range(CALLERS)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        store.turn.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in found[::2])
        assert {(str(each), each.detail) for each in found[1::2]} == {  # type: ignore[union-attr]
            ("postgres cannot be reached", "it is starting up")
        }
        assert len({id(each) for each in found}) == CALLERS
        store.error = None
        assert list((await batches.read(GRID, [7])).entities) == [7]

    asyncio.run(run())


def test_calls_that_fail_together_are_one_failure() -> None:
    breaker = Breaker()
    for wave in range(FAILURES_BEFORE_OPEN):
        assert breaker.closed
        for _ in range(CALLERS):
            breaker.failed("redis did not answer within 100 ms", wave + 0.9, began=wave + 0.1)
    assert not breaker.closed


def test_a_place_that_flaps_ten_times_a_second_is_said_to_fail_once() -> None:
    breaker = Breaker()
    said = [
        (breaker.failed("redis cannot be reached", at / 10), breaker.succeeded(at / 10 + 0.05)) for at in range(600)
    ]
    assert said[0] == (True, False)
    assert not any(any(each) for each in said[1:])
    assert not breaker.succeeded(59.9 + CALM_SECONDS / 2)
    assert breaker.succeeded(60 + CALM_SECONDS)
    assert not breaker.succeeded(61 + CALM_SECONDS)
    assert breaker.failed("redis cannot be reached", 70.0), "a new failure is said again"


@pytest.mark.parametrize("times", [1, 20])
def test_a_place_that_this_process_has_no_hand_free_for_is_not_called_dead(
    caplog: pytest.LogCaptureFixture, times: int
) -> None:
    caplog.set_level(logging.INFO)

    async def run() -> None:
        store = Store(error=PlaceBusy("none of 8 connections to postgres came free within 1000 ms"))
        store.turn.set()
        guarded = Guarded(store)
        for _ in range(times):
            with pytest.raises(PlaceBusy, match="none of 8 connections"):
                await guarded.ask(store.read(GRID, [1]))
        assert guarded.breaker.closed
        assert (await guarded.state(store.read(GRID, [1]))).startswith("busy: none of 8 connections")

    asyncio.run(run())
    assert not caplog.records


def test_a_call_that_its_caller_gave_up_is_cut_off_and_counts_for_nothing() -> None:
    async def run() -> None:
        store = Store()
        guarded = Guarded(store)
        task = asyncio.ensure_future(guarded.ask(store.read(GRID, [1])))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1, "the call goes on without anybody"
        assert guarded.breaker.closed

    asyncio.run(run())
