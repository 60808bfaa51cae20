"""Postgres loses commits that Redis has, and counts the same numbers again: what Redis has of the lost ones goes."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest
import redis
from msgspec.structs import replace

from almanac.clock import HOUR, utc_now
from almanac.errors import BlockError
from almanac.pipeline import Pipeline
from serving_cache import layout
from serving_cache.postgres import PostgresStore
from serving_cache.reconciler import Reconciler
from serving_cache.records import Pointer
from serving_cache.redis import RedisStore
from serving_cache.rollback import roll_back
from serving_cache.sync import of_lost_commits, sync_redis
from tests.generations import NOON, grid_pipeline, migrated, overlay_of, published_generation

DAY = timedelta(days=1)


def lose(people: psycopg.Connection, name: str, *lost: int) -> None:
    """What a restored backup does that has generation 1 at epoch 1 and nothing later."""
    people.execute("UPDATE pointers SET epoch = 1, generation = 1, previous = NULL WHERE pipeline = %s", (name,))
    people.execute("DELETE FROM pointer_moves WHERE pipeline = %s AND epoch > 1", (name,))
    for number in lost:
        people.execute(f"ALTER TABLE {layout.table_name(name)} DETACH PARTITION {layout.child_name(name, number)}")
        people.execute(f"DROP TABLE {layout.child_name(name, number)}")
    for table in ("generation_partitions", "ledger", "generations"):
        people.execute(f"DELETE FROM {table} WHERE pipeline = %s AND generation > 1", (name,))
    people.execute("UPDATE generations SET state = 'current', left_at = NULL WHERE pipeline = %s", (name,))


@pytest.fixture
def pipeline(store: PostgresStore, cache: RedisStore, people: psycopg.Connection, postgres_url: str) -> Pipeline:
    """Redis is at epoch 2 and generation 2; Postgres lost these, and is at epoch 1."""
    found = migrated(postgres_url, grid_pipeline())
    published_generation(store, found, 280.0)
    published_generation(store, found, 281.0, NOON + DAY)
    sync_redis(found, store, cache)
    lose(people, found.name, 2)
    return found


def is_in_step(pipeline: Pipeline, store: PostgresStore, cache: RedisStore, raw: redis.Redis) -> None:
    """Redis has what the record's pointer names, to stay, and no block but those."""
    pointer = store.pointer(pipeline.name)
    assert pointer is not None
    assert cache.pointer(pipeline.name) == pointer
    wanted: set[str] = set()
    for record in (pointer.generation, pointer.previous):
        if record is not None:
            manifest = store.manifest(pipeline.name, record.generation)
            assert cache.manifest(pipeline.name, record.generation) == manifest
            wanted |= {entry.block_hash for entry in manifest.values()}
    assert set(cache.blocks(pipeline.name, wanted)) == wanted
    keys = list(raw.scan_iter(match=layout.block_key(pipeline.name, "*")))
    assert {key.decode() for key in keys} == {layout.block_key(pipeline.name, digest) for digest in wanted}
    assert all(raw.ttl(key) == -1 for key in keys)


@pytest.mark.parametrize("who", ["the publisher", "the reconciler at once", "the reconciler when it proves"])
def test_another_generation_under_the_epoch_and_number_of_a_lost_one_replaces_it(
    who: str, pipeline: Pipeline, store: PostgresStore, cache: RedisStore, raw: redis.Redis
) -> None:
    reconciler = Reconciler([pipeline], store, cache)
    if who == "the reconciler at once":
        reconciler.step(0.0)  # and now the next proof is half a minute away
        assert "ahead" in (reconciler.why_not_ready() or "")
        reconciler._watches[0].proven_at = 0.0
    lost = cache.manifest(pipeline.name, 2)
    store.put_overlays(pipeline.name, [overlay_of("5", utc_now(), 1)])
    published_generation(store, pipeline, 299.0, NOON + 2 * DAY)
    assert (cache.pointer(pipeline.name).epoch, store.pointer(pipeline.name).epoch) == (2, 2)  # type: ignore[union-attr]
    if who == "the publisher":
        assert sync_redis(pipeline, store, cache)
    else:
        assert reconciler.step(1.0)
        assert reconciler.why_not_ready() is None
    assert cache.manifest(pipeline.name, 2) != lost
    is_in_step(pipeline, store, cache, raw)
    assert set(cache.overlays(pipeline.name, "5")) == {"weather-v1"}
    assert not sync_redis(pipeline, store, cache)
    is_in_step(pipeline, store, cache, raw)


def test_readers_find_no_pointer_while_what_it_names_is_replaced(
    pipeline: Pipeline, store: PostgresStore, cache: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    published_generation(store, pipeline, 299.0, NOON + 2 * DAY)
    lost = cache.pointer(pipeline.name)
    seen: list[Pointer | None] = []
    for name in ("put_blocks", "put_manifest", "move_pointer"):
        real = getattr(RedisStore, name)

        def watched(self: RedisStore, *given: object, real: object = real, name: str = name) -> object:
            seen.append(self.pointer(pipeline.name) if name != "put_blocks" else None)
            if name == "put_blocks":
                assert self.pointer(pipeline.name) == lost  # beside readers
            return real(self, *given)  # type: ignore[operator]

        monkeypatch.setattr(RedisStore, name, watched)
    assert sync_redis(pipeline, store, cache)
    assert len(seen) > 3
    assert set(seen) == {None}


def test_a_later_epoch_does_not_hide_that_the_generation_before_is_another(
    pipeline: Pipeline, store: PostgresStore, cache: RedisStore, raw: redis.Redis
) -> None:
    published_generation(store, pipeline, 299.0, NOON + 2 * DAY)
    published_generation(store, pipeline, 300.0, NOON + 3 * DAY)
    assert Reconciler([pipeline], store, cache).step(0.0)
    is_in_step(pipeline, store, cache, raw)


def test_a_lost_manifest_that_redis_still_has_is_not_gone_back_to(
    pipeline: Pipeline, store: PostgresStore, cache: RedisStore
) -> None:
    lost = cache.manifest(pipeline.name, 2)
    for value in (299.0, 300.0, 301.0):  # Redis hears of the last alone, and lets generation 2 go in ten minutes
        published_generation(store, pipeline, value, NOON + (value - 297) * DAY)
    sync_redis(pipeline, store, cache)
    cache.put_manifest(pipeline.name, 2, lost)
    assert roll_back(pipeline, store, cache, 2)[1] == ""
    assert cache.pointer(pipeline.name) == store.pointer(pipeline.name)
    assert cache.manifest(pipeline.name, 2) == store.manifest(pipeline.name, 2) != lost


def test_a_manifest_that_cannot_be_read_is_written_again(
    store: PostgresStore, cache: RedisStore, raw: redis.Redis, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    published_generation(store, pipeline, 1.0)
    sync_redis(pipeline, store, cache)
    raw.hset(layout.manifest_key(pipeline.name, 1), "3", b"not JSON")
    with pytest.raises(BlockError):
        cache.manifest(pipeline.name, 1)
    sync_redis(pipeline, store, cache)
    assert cache.manifest(pipeline.name, 1) == store.manifest(pipeline.name, 1)


def test_what_is_ahead_of_lost_commits_stays_whole_until_it_is_rebuilt(
    store: PostgresStore, cache: RedisStore, people: psycopg.Connection, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    for day in range(3):
        published_generation(store, pipeline, 280.0 + day, NOON + day * DAY)
    sync_redis(pipeline, store, cache)
    lose(people, pipeline.name, 2, 3)
    ahead, lost = cache.pointer(pipeline.name), cache.manifest(pipeline.name, 2)
    published_generation(store, pipeline, 299.0, NOON + 3 * DAY)
    assert not sync_redis(pipeline, store, cache)
    assert (cache.pointer(pipeline.name), cache.manifest(pipeline.name, 2)) == (ahead, lost)
    reconciler = Reconciler([pipeline], store, cache)
    reconciler.step(0.0)
    assert "run `almanac rebuild" in (reconciler.why_not_ready() or "")


def test_moments_tell_commits_apart_and_states_do_not(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    published_generation(store, pipeline, 1.0)
    published_generation(store, pipeline, 2.0, NOON + HOUR)
    one = store.pointer(pipeline.name)
    assert one is not None
    assert one.previous is not None
    current, before = one.generation, one.previous
    assert not of_lost_commits(one, one)
    assert not of_lost_commits(one, replace(one, generation=replace(current, alert="since"), epoch=2))
    assert not of_lost_commits(one, replace(one, epoch=3, moved_at=NOON + DAY))
    assert not of_lost_commits(one, replace(one, epoch=3, generation=replace(current, generation=9), previous=current))
    assert of_lost_commits(one, replace(one, moved_at=NOON + DAY))
    assert of_lost_commits(one, replace(one, generation=replace(current, generation=9)))
    assert of_lost_commits(one, replace(one, epoch=3, previous=replace(before, created_at=NOON + DAY)))
    other = replace(current, created_at=NOON + DAY)
    assert of_lost_commits(one, replace(one, epoch=3, generation=replace(current, generation=9), previous=other))
