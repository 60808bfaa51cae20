"""What Redis owes on its own: it only moves forward, notices being emptied, and keeps what its pointer names."""

from __future__ import annotations

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from almanac.errors import BlockError, UsageError
from serving_cache import layout
from serving_cache.postgres import PostgresStore
from serving_cache.records import Pointer
from serving_cache.redis import GRACE_SECONDS, UNREFERENCED_SECONDS, Emptied, RedisStore
from serving_cache.sync import rebuild_redis, sync_redis
from tests.generations import NOON, grid_pipeline, migrated, new_name, overlay_of, published_generation


@pytest.fixture(scope="module")
def some_pointer(postgres_url: str) -> Pointer:
    pipeline = migrated(postgres_url, grid_pipeline())
    with PostgresStore(postgres_url) as store:
        published_generation(store, pipeline, 1.0)
        found = store.pointer(pipeline.name)
    assert found is not None
    return found


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(epochs=st.lists(st.integers(1, 2**53), min_size=1, max_size=8))
def test_the_pointer_moves_only_to_a_greater_epoch(cache: RedisStore, some_pointer: Pointer, epochs: list[int]) -> None:
    name = new_name()
    marker = cache.mark(name)
    greatest = 0
    for epoch in epochs:
        offered = msgspec.structs.replace(some_pointer, pipeline=name, epoch=epoch)
        assert cache.move_pointer(offered, marker) == (epoch > greatest)
        greatest = max(greatest, epoch)
        found = cache.pointer(name)
        assert found is not None
        assert found.epoch == greatest


def test_a_pointer_is_not_moved_once_redis_was_emptied(
    cache: RedisStore, raw: redis.Redis, some_pointer: Pointer
) -> None:
    offered = msgspec.structs.replace(some_pointer, pipeline=new_name())
    marker = cache.mark(offered.pipeline)
    raw.delete(layout.marker_key(offered.pipeline))
    with pytest.raises(Emptied):
        cache.move_pointer(offered, marker)
    assert cache.mark(offered.pipeline) != marker
    with pytest.raises(Emptied):
        cache.move_pointer(offered, marker)
    assert cache.pointer(offered.pipeline) is None


def test_the_marker_stays_while_redis_is_whole(cache: RedisStore) -> None:
    name = new_name()
    assert cache.mark(name) == cache.mark(name)


def test_what_the_pointer_names_stays_and_the_rest_is_let_go(
    store: PostgresStore, cache: RedisStore, raw: redis.Redis, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline(coverage_min=0.5))
    for value in (1.0, 2.0, 1.0, 3.0):  # the third has the blocks of the first
        published_generation(store, pipeline, value)
        sync_redis(pipeline, store, cache)
    for generation, value in ((1, "let go"), (2, "let go"), (3, "kept"), (4, "kept")):
        left = raw.ttl(layout.manifest_key(pipeline.name, generation))
        assert (0 < left <= GRACE_SECONDS) if value == "let go" else left == -1, generation
    for generation, held in ((2, False), (3, True), (4, True)):
        entry = store.manifest(pipeline.name, generation)[0]
        left = raw.ttl(layout.block_key(pipeline.name, entry.block_hash))
        assert (left == -1) == held, generation


def test_blocks_that_no_manifest_holds_go_by_themselves(cache: RedisStore, raw: redis.Redis) -> None:
    name = new_name()
    cache.put_blocks(name, {"a" * 32: b"bytes"})
    assert 0 < raw.ttl(layout.block_key(name, "a" * 32)) <= UNREFERENCED_SECONDS
    assert cache.missing_blocks(name, 1, ["a" * 32, "b" * 32]) == ["b" * 32]


def test_an_older_follower_lets_nothing_go(
    store: PostgresStore, cache: RedisStore, raw: redis.Redis, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    published_generation(store, pipeline, 1.0)
    old = store.pointer(pipeline.name)
    assert old is not None
    published_generation(store, pipeline, 2.0)
    sync_redis(pipeline, store, cache)
    assert cache.let_go(old, []) == 0
    assert raw.ttl(layout.manifest_key(pipeline.name, 2)) == -1


def test_a_rebuilt_redis_is_what_it_was(
    store: PostgresStore, cache: RedisStore, raw: redis.Redis, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    from almanac.clock import utc_now

    overlays = [overlay_of("1", utc_now(), 7), overlay_of("2", NOON, 8)]  # the second is long expired
    store.put_overlays(pipeline.name, overlays)
    published_generation(store, pipeline, 1.0)
    published_generation(store, pipeline, 2.0)
    rebuild_redis(pipeline, store, cache)
    scope = layout.pointer_key(pipeline.name).removesuffix("pointer") + "*"

    def everything() -> dict[bytes, bytes]:
        return {key: raw.dump(key) for key in raw.scan_iter(match=scope) if not key.endswith(b":marker")}

    before = everything()
    raw.set(layout.block_key(pipeline.name, "f" * 32), b"stray")
    raw.delete(layout.overlay_key(pipeline.name, "1"))
    raw.set(layout.pointer_key(pipeline.name), b"not JSON")
    with pytest.raises(BlockError, match="rebuild"):
        cache.pointer(pipeline.name)
    rebuild_redis(pipeline, store, cache)
    assert everything() == before
    assert set(cache.overlays(pipeline.name, "1")) == {"weather-v1"}
    assert cache.overlays(pipeline.name, "2") == {}


def test_a_pointer_that_cannot_be_read_is_replaced(
    store: PostgresStore, cache: RedisStore, raw: redis.Redis, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    published_generation(store, pipeline, 1.0)
    raw.set(layout.pointer_key(pipeline.name), b'{"epoch": 99}')
    assert sync_redis(pipeline, store, cache)
    assert cache.pointer(pipeline.name) == store.pointer(pipeline.name)


def test_an_overlay_that_cannot_be_read_is_replaced(cache: RedisStore, raw: redis.Redis) -> None:
    name = new_name()
    raw.hset(layout.overlay_key(name, "1"), "weather-v1", b"not JSON")
    assert cache.put_overlays(name, [overlay_of("1", NOON, 1)]) == 1
    assert cache.overlays(name, "1")["weather-v1"].kafka_offset == 1


def test_rows_that_somebody_changed_are_noticed(store: PostgresStore, cache: RedisStore, postgres_url: str) -> None:
    import psycopg

    pipeline = migrated(postgres_url, grid_pipeline())
    published_generation(store, pipeline, 1.0)
    with psycopg.connect(postgres_url) as connection:
        connection.execute(f"UPDATE {layout.child_name(pipeline.name, 1)} SET t2m_1h = 5 WHERE cell_id = 3")
    with pytest.raises(BlockError, match="partition 1 "):
        sync_redis(pipeline, store, cache)
    assert cache.pointer(pipeline.name) is None
    with pytest.raises(UsageError, match="no partition 99"):
        store.blocks(pipeline, 1, [99])
