"""Which overlays Redis should hold, and when one that it lost would count."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from almanac.clock import micros_of
from almanac.errors import BlockError
from almanac.redis_memory import why_it_may_evict
from serving_cache.overlaid import SLICES, lost, slice_of
from tests.generations import NOON, overlay_of

MINUTE = timedelta(minutes=1)
LONG_AGO = NOON - timedelta(days=1)


def note(**models: int) -> bytes:
    """As the script writes it: minutes after noon by model."""
    return msgspec.json.encode({m.replace("_", "-"): str(micros_of(NOON + at * MINUTE)) for m, at in models.items()})


def test_what_was_noted_and_is_not_there_is_missed() -> None:
    here = [overlay_of("1", NOON, 1)]
    newer = [overlay_of("1", NOON + MINUTE, 2)]
    assert not lost(None, [], LONG_AGO)
    assert lost(note(weather_v1=0), [], LONG_AGO)
    assert not lost(note(weather_v1=0), here, LONG_AGO)
    assert not lost(note(weather_v1=0), newer, LONG_AGO), "a newer one came between the two reads"
    assert lost(note(weather_v1=1), here, LONG_AGO), "an older copy came back"
    assert lost(note(weather_v1=0, weather_v2=0), here, LONG_AGO), "that of another model is gone"


def test_what_is_older_than_anything_that_counts_is_not_missed() -> None:
    assert not lost(note(weather_v1=0), [], NOON + MINUTE)
    assert lost(note(weather_v1=0), [], NOON)
    assert lost(note(weather_v1=0, weather_v2=5), [], NOON + MINUTE)


@pytest.mark.parametrize("harmed", [b"", b"[]", b"\xff", b'{"weather-v1": 5}'])
def test_a_note_that_cannot_be_read_is_no_note_of_nothing(harmed: bytes) -> None:
    with pytest.raises(BlockError, match="rebuild"):
        lost(harmed, [], LONG_AGO)


def test_entities_spread_over_the_slices() -> None:
    assert {slice_of(str(entity)) for entity in range(2_000)} == set(range(SLICES))


def test_a_redis_that_may_evict_is_told_by_its_policy_alone() -> None:
    assert why_it_may_evict({"maxmemory_policy": "noeviction", "evicted_keys": 5}) is None
    assert why_it_may_evict({}) is None
    for policy in ("allkeys-lru", "volatile-ttl"):
        said = str(why_it_may_evict({"maxmemory_policy": policy, "evicted_keys": 5}))
        assert policy in said
        assert "5 keys" in said
        assert "noeviction" in said
