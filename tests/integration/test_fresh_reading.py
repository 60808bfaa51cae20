"""How a fresh computation reads online features from real Redis: keys of text, plans that change or are absent."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import msgspec
import numpy as np
import pytest
import redis

from almanac.clock import utc_now
from almanac.errors import Unavailable
from features.online_reading import Reader, plan_key
from features.packed.codec import Column
from features.packed.store import put_if_newer
from serving_cache.lookup.online import OnlineFeatures, Read
from serving_cache.lookup.places import PlaceUnusable
from serving_cache.lookup.predicting import flattened
from tests.fresh import packed, plan_for, put_features, put_plan
from tests.generations import bucket_pipeline, new_name

TEN = timedelta(minutes=10)


def test_keys_of_text_are_read_and_another_plan_is_followed(redis_url: str) -> None:
    users = bucket_pipeline(features=new_name())
    plan = plan_for(users, "string")
    at = utc_now().replace(microsecond=0) - TEN
    put_plan(redis_url, plan)
    for key, value in (("ann/é", 281.0), ("7", 282.0), ("☃" * 60, 283.0)):
        put_features(redis_url, plan, key, at, t2m=value)

    async def run() -> None:
        online = OnlineFeatures(redis_url, lambda service: None)
        read = await online.read(users.features, ["ann/é", "nobody", "7", "☃" * 60])
        found = read.reader.decode(flattened(read.rows), utc_now())
        assert found.as_of == (at, None, at, at)
        assert [found.columns["t2m"][row] for row in (0, 2, 3)] == [281.0, 282.0, 283.0]
        put_plan(redis_url, msgspec.structs.replace(plan, views=plan.views[:1]))
        again = await online.read(users.features, ["7"])
        assert list(again.reader.decode(flattened(again.rows), utc_now()).columns) == ["t2m"]
        with pytest.raises(PlaceUnusable, match=f"there is no reading plan of {users.name}"):
            await online.read(users.name, ["7"])
        await online.close()

    asyncio.run(run())


def test_rows_packed_before_columns_came_are_read_by_the_layout_beside_them(redis_url: str) -> None:
    users = bucket_pipeline(features=new_name())
    plan = plan_for(users, "string")
    older, at = Reader(plan), utc_now().replace(microsecond=0) - TEN
    first = msgspec.structs.replace(
        plan.views[0], packed=(Column("wind", "FLOAT"), *plan.views[0].packed), features=("wind", "t2m"),
        columns=("wind", "t2m"),
    )  # fmt: skip
    newer = msgspec.structs.replace(plan, views=(first, *plan.views[1:]))
    put_plan(redis_url, newer)
    keys = older.keys(["ann"])
    with redis.Redis.from_url(redis_url) as client:
        for key, layout in zip(keys, older.layouts, strict=True):
            put_if_newer(client, layout, [key], [packed(layout, at, 7.0)], ties_replace=True)

    async def run() -> None:
        online = OnlineFeatures(redis_url, lambda service: None)
        try:
            read = await online.read(users.features, ["ann"])
            found = read.reader.decode(flattened(read.rows), utc_now())
        finally:
            await online.close()
        assert (found.as_of, found.columns["t2m"][0], np.isnan(found.columns["wind"][0])) == ((at,), 7.0, True)

    asyncio.run(run())


def test_all_who_want_a_plan_wait_for_the_one_who_asks_the_record(redis_url: str) -> None:
    users = bucket_pipeline(features=new_name())
    plan = plan_for(users, "string")
    put_plan(redis_url, plan)
    with redis.Redis.from_url(redis_url) as client:
        data = client.getdel(plan_key(plan.service))
    answers: list[bytes | Unavailable] = [Unavailable("Postgres did not answer"), data]
    asked: list[str] = []
    let_go = threading.Event()

    def recorded(service: str) -> bytes:
        asked.append(service)
        let_go.wait()
        answer = answers[len(asked) - 1]
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    async def run() -> None:
        online = OnlineFeatures(redis_url, recorded)
        for expected in (PlaceUnusable, Read):
            let_go.clear()
            reads = [asyncio.ensure_future(online.read(users.features, [str(n)])) for n in range(5)]
            while len(asked) < len(answers) - (expected is PlaceUnusable):
                await asyncio.sleep(0)
            reads[0].cancel()  # the one that asked first
            let_go.set()
            found = await asyncio.gather(*reads, return_exceptions=True)
            assert isinstance(found[0], asyncio.CancelledError)
            assert {type(each) for each in found[1:]} == {expected}
        assert asked == [users.features] * 2
        await online.close()

    asyncio.run(run())
