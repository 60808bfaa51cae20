"""Packed values on a real Redis: newer wins under any order, whoever writes; a newer version stops the call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from almanac.errors import FeatureError
from features.packed.arrow import decode, encode
from features.packed.codec import CODEC_VERSION, Column, Layout, parse
from features.packed.keys import Keys
from features.packed.store import CALL_BYTES_MAX, LAYOUTS_KEY, Writes, fetch, fetch_layouts, put_if_newer, time_of

LAYOUT = Layout(project="p", view="v", columns=(Column("number", "INT64"), Column("name", "STRING")))
WIDER = Layout(project="p", view="v", columns=(*LAYOUT.columns, Column("more", "DOUBLE")))
KEYS = Keys(project="p", view="v", join_keys=(Column("id", "INT64"),))
MANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as found:
        found.flushdb()
        yield found
        found.flushdb()


def rows(
    times: list[int], numbers: list[int], layout: Layout = LAYOUT, created: list[int] | None = None
) -> list[bytes]:
    table = pa.table({"number": numbers, "name": [f"n{each}" for each in numbers], "more": [1.0] * len(numbers)})
    when = None if created is None else np.array(created, dtype=np.int64)
    return encode(layout, table, np.array(times, dtype=np.int64), when)


def held(client: redis.Redis, entities: list[int]) -> list[tuple[int, int] | None]:
    """Event time and number of each entity's row."""
    values = fetch(client, KEYS.of(entities))
    known = fetch_layouts(client, {WIDER.fingerprint})
    numbers = decode(LAYOUT, parse(LAYOUT, values, known), len(values))["number"].to_pylist()
    return [None if v is None else (time_of(v), number) for v, number in zip(values, numbers, strict=True)]


WRITES = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([-(2**60), -1, 0, 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**60])),
    max_size=12,
)


@MANY
@given(WRITES, st.booleans(), st.lists(st.integers(1, 4)))
def test_the_newest_row_of_each_entity_stays_however_writes_are_cut(
    client: redis.Redis, writes: list[tuple[int, int]], ties: bool, cuts: list[int]
) -> None:
    client.flushdb()
    expected: dict[int, tuple[int, int]] = {}
    for number, (entity, time) in enumerate(writes):
        if entity not in expected or time > expected[entity][0] or (ties and time == expected[entity][0]):
            expected[entity] = (time, number)
    numbered = list(enumerate(writes))
    while numbered:
        size = cuts.pop() if cuts else len(numbered)
        part, numbered = numbered[:size], numbered[size:]
        values = rows([time for _, (_, time) in part], [number for number, _ in part])
        put_if_newer(client, LAYOUT, KEYS.of([entity for _, (entity, _) in part]), values, ties_replace=ties)
    assert held(client, [0, 1, 2, 3]) == [expected.get(entity) for entity in range(4)]


@MANY
@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([-(2**40), 5, 2**60]), st.sampled_from([1, 7, 2**55]))))
def test_of_one_event_time_the_row_created_later_stays(client: redis.Redis, writes: list[tuple[int, int, int]]) -> None:
    for together in (True, False):
        client.flushdb()
        made = [rows([time], [at], created=[created])[0] for at, (_, time, created) in enumerate(writes)]
        keys = KEYS.of([entity for entity, _, _ in writes])
        for start in range(0, len(writes), max(1, len(writes)) if together else 1):
            size = len(writes) if together else 1
            put_if_newer(client, LAYOUT, keys[start : start + size], made[start : start + size], ties_replace=False)
        for entity in (0, 1):
            mine = [((time, created), -at) for at, (whose, time, created) in enumerate(writes) if whose == entity]
            number = -max(mine)[1] if mine else None
            assert held(client, [entity]) == [None if number is None else (writes[number][1], number)]


def test_where_creation_is_not_known_of_both_the_caller_decides(client: redis.Redis) -> None:
    (key,) = KEYS.of([1])
    for created, number, ties, expected in ((9, 1, False, 1), (0, 2, False, 1), (0, 3, True, 3), (4, 4, False, 3)):
        put_if_newer(client, LAYOUT, [key], rows([5], [number], created=[created]), ties_replace=ties)
        assert held(client, [1]) == [(5, expected)]


def test_many_rows_are_written_and_the_count_is_of_those_that_were(client: redis.Redis) -> None:
    keys = KEYS.of(range(20_500))
    values = rows([5] * len(keys), list(range(len(keys))))
    assert put_if_newer(client, LAYOUT, keys[::2], values[::2], ties_replace=False) == 10_250
    client.script_flush()  # as a Redis that was started anew
    assert put_if_newer(client, LAYOUT, keys, values, ties_replace=False) == 10_250
    assert fetch(client, keys) == values
    assert put_if_newer(client, LAYOUT, [], [], ties_replace=False) == 0


def test_writes_are_on_their_way_while_the_next_are_made_and_none_is_lost(client: redis.Redis) -> None:
    keys = KEYS.of(range(20_500))
    values = rows([5] * len(keys), list(range(len(keys))))
    with Writes(client, LAYOUT, ties_replace=False) as writes:
        counts = [writes.put(keys[:9_000], values[:9_000]), writes.put(keys[:100], values[:100])]
        client.script_flush()  # as a Redis that was started anew
        counts += [writes.put(keys[9_000:], values[9_000:]), writes.put([], []), writes.end(), writes.end()]
    assert (sum(counts), counts[0], counts[-1]) == (20_500, 8_000, 0)
    assert fetch(client, keys) == values


def test_writes_stop_at_a_row_of_a_newer_version_and_give_their_connection_back(client: redis.Redis) -> None:
    keys = KEYS.of([1, 2])
    (value,) = rows([5], [1])
    client.set(keys[0], bytes([value[0], CODEC_VERSION + 1]) + value[2:])
    with Writes(client, LAYOUT, ties_replace=True) as writes:
        writes.put(keys[1:], [value])
        writes.put(keys, rows([9] * 2, [1, 2]))
        with pytest.raises(FeatureError, match="upgrade it"):
            writes.put(keys[1:], rows([11], [1]))  # notices what the one before came to
    assert held(client, [2]) == [(5, 1)]
    assert client.ping()


def test_large_rows_are_written_few_at_a_time(client: redis.Redis) -> None:
    layout = Layout(project="p", view="large", columns=(Column("text", "STRING"),))
    texts = ["x" * (size * CALL_BYTES_MAX // 8) for size in (3, 3, 9, 1, 1, 3)]
    values = encode(layout, pa.table({"text": texts}), np.full(len(texts), 5))
    assert put_if_newer(client, layout, KEYS.of(range(len(texts))), values, ties_replace=False) == len(texts)
    read = decode(layout, parse(layout, fetch(client, KEYS.of(range(len(texts))))), len(texts))
    assert read["text"].to_pylist() == texts


def test_columns_that_came_or_went_replace_at_the_same_event_time_and_are_read_by_name(client: redis.Redis) -> None:
    keys = KEYS.of([1, 2, 3])
    put_if_newer(client, WIDER, keys, rows([5, 5, 9], [1, 2, 3], WIDER), ties_replace=False)
    assert held(client, [1, 2, 3]) == [(5, 1), (5, 2), (9, 3)]
    assert put_if_newer(client, LAYOUT, keys[1:], rows([5, 8], [20, 30]), ties_replace=False) == 1
    assert held(client, [1, 2, 3]) == [(5, 1), (5, 20), (9, 3)]
    assert fetch_layouts(client, {LAYOUT.fingerprint, WIDER.fingerprint, 7}) == {
        LAYOUT.fingerprint: LAYOUT, WIDER.fingerprint: WIDER,
    }  # fmt: skip


def test_a_row_of_a_newer_version_stops_the_call_before_anything_is_written(client: redis.Redis) -> None:
    keys = KEYS.of([1, 2, 3])
    (value,) = rows([5], [1])
    newer = bytes([value[0], CODEC_VERSION + 1]) + value[2:]
    client.set(keys[2], newer)
    with pytest.raises(FeatureError, match=f"packed by version {CODEC_VERSION + 1}.*upgrade it"):
        put_if_newer(client, LAYOUT, keys, rows([9] * 3, [1, 2, 3]), ties_replace=True)
    assert fetch(client, keys) == [None, None, newer]


@pytest.mark.parametrize("harmed", [b"", b"x", b"x" * 40])
def test_damaged_values_and_keys_of_another_kind_are_replaced(client: redis.Redis, harmed: bytes) -> None:
    keys = KEYS.of([1, 2])
    client.set(keys[0], harmed)
    client.execute_command("HSET", keys[1], "field", "x")  # type: ignore[no-untyped-call]
    assert put_if_newer(client, LAYOUT, keys, rows([5, 5], [1, 2]), ties_replace=False) == 2
    assert held(client, [1, 2]) == [(5, 1), (5, 2)]


def test_redis_forgets_rows_where_told_to(client: redis.Redis) -> None:
    keys = KEYS.of([1, 2])
    put_if_newer(client, LAYOUT, keys[:1], rows([5], [1]), ties_replace=False, expire_seconds=1000)
    left: Any = client.ttl(keys[0])
    assert 900 < left <= 1000
    put_if_newer(client, LAYOUT, keys, rows([6, 6], [1, 2]), ties_replace=False)
    assert [client.ttl(key) for key in keys] == [-1, -1]
    assert client.ttl(LAYOUTS_KEY) == -1


@pytest.mark.parametrize("trips", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_a_row_that_is_sent_again_is_kept_for_as_long_again(client: redis.Redis, ties: bool, trips: bool) -> None:
    keys = KEYS.of([1, 2, 3])
    first = rows([5, 5, 5], [1, 2, 3])

    def send(values: list[bytes], seconds: float | None) -> list[int]:
        """Send rows; returns the seconds that are left of each."""
        if trips:
            with Writes(client, LAYOUT, ties_replace=ties, expire_seconds=seconds) as writes:
                writes.put(keys, values)
                writes.end()
        else:
            put_if_newer(client, LAYOUT, keys, values, ties_replace=ties, expire_seconds=seconds)
        return [client.ttl(key) for key in keys]  # type: ignore[misc]

    send(first, 100)
    for key in keys:
        client.expire(key, 10)
    again = send([first[0], *rows([4, 6], [20, 30])], 100)  # the same, an older one and a newer one
    assert all(90 < left <= 100 for left in again), again
    assert held(client, [1, 2, 3]) == [(5, 1), (5, 2), (6, 30)]
    assert all(40 < left <= 50 for left in send(first, 50)), "another time is taken at the next sending"
    assert send(first, None) == [-1, -1, -1], "and none keeps rows for good"


def test_a_time_too_short_for_redis_is_not_for_ever(client: redis.Redis) -> None:
    keys = KEYS.of([1])
    put_if_newer(client, LAYOUT, keys, rows([5], [1]), ties_replace=False, expire_seconds=1e-9)
    assert client.pttl(keys[0]) in (-2, 0, 1)


def test_a_views_keys_are_found_by_its_pattern(client: redis.Redis) -> None:
    keys = KEYS.of(range(50))
    put_if_newer(client, LAYOUT, keys, rows([5] * 50, list(range(50))), ties_replace=False)
    other = Keys(project="p", view="w", join_keys=KEYS.join_keys).of([1])
    put_if_newer(client, LAYOUT, other, rows([5], [1]), ties_replace=False)
    assert sorted(client.scan_iter(match=KEYS.pattern)) == sorted(keys)


def test_a_connection_that_died_meanwhile_is_replaced_and_one_that_cannot_be_is_said(redis_url: str) -> None:
    (key,) = KEYS.of([1])
    with redis.Redis.from_url(redis_url) as reading, redis.Redis.from_url(redis_url) as other:
        reading.client_setname("reading")
        assert fetch(reading, [key]) == [None]
        (id_,) = [held["id"] for held in other.client_list() if held["name"] == "reading"]
        assert other.client_kill_filter(_id=id_) == 1
        assert fetch(reading, [key, key]) == [None, None]
    with redis.Redis(port=1) as nowhere, pytest.raises(redis.ConnectionError):
        fetch(nowhere, [key])
