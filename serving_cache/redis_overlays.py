"""The part of `RedisStore` that keeps overlays, notes that they are there, and tells which were lost."""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import redis

from almanac.closing import Closing
from almanac.decisions import newest
from almanac.redis_memory import why_it_may_evict
from serving_cache import redis_scripts as scripts
from serving_cache.layout import decode_overlay, encode_overlay, overlay_key
from serving_cache.overlaid import FILLING, SLICES, WHOLE, slice_key, slice_of
from serving_cache.records import OverlayRecord

KEYS_PER_TRIP = 500
OVERLAY_KEPT = timedelta(days=31)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RedisServer:
    """What a Redis says of itself.

    Args:
        run_id: another one after a restart, or of another server at the same address.
        why_it_may_evict: what may be lost and what to do; None of a server that keeps what it was given.
        evicted_keys: since it was started.
    """

    run_id: str
    why_it_may_evict: str | None
    evicted_keys: int


class RedisOverlays(Closing):
    """Overlays by entity, and the slices that note them."""

    _redis: redis.Redis

    @abstractmethod
    def _errors(self) -> AbstractContextManager[None]:
        """Map what the client raises onto the project's errors."""

    def _register(self) -> None:
        self._put_overlays = self._redis.register_script(scripts.PUT_OVERLAYS)
        self._seal_slices = self._redis.register_script(scripts.SEAL_SLICES)
        self._forget_notes = self._redis.register_script(scripts.FORGET_NOTES)

    def overlays(self, pipeline: str, entity: str) -> dict[str, OverlayRecord]:
        """One entity's overlays by model."""
        with self._errors():
            found: Any = self._redis.hgetall(overlay_key(pipeline, entity))
        return {model.decode(): decode_overlay(data) for model, data in found.items()}

    def put_overlays(self, pipeline: str, records: Sequence[OverlayRecord], keep_for: timedelta = OVERLAY_KEPT) -> int:
        """Store predictions from the stream where they are newer than what is stored; returns how many were.

        Atomic for each entity. Replays and zombies change nothing, but that the entity's overlays are kept on.

        Args:
            keep_for: an entity's overlays go when none of them was put for so long.
        """
        written = 0
        seconds = int(keep_for.total_seconds())
        with self._errors():
            for part in chunks(newest(records), KEYS_PER_TRIP):
                keys = [overlay_key(pipeline, record.entity) for record in part]
                keys += [slice_key(pipeline, slice_of(record.entity)) for record in part]
                words = [word for one in part for word in (one.model, encode_overlay(one), one.entity)]
                written += int(self._put_overlays(keys=keys, args=[seconds, *words]))
        return written

    def unsealed_slices(self, pipeline: str) -> list[int]:
        """The slices that do not note every overlay, or are lost."""
        with self._errors(), self._redis.pipeline(transaction=False) as trip:
            for number in range(SLICES):
                trip.hexists(slice_key(pipeline, number), WHOLE)
            return [number for number, whole in enumerate(trip.execute()) if not whole]

    def begin_slices(self, pipeline: str, numbers: Sequence[int]) -> str:
        """Say that these slices are being filled; returns the word by which `seal_slices` knows them again."""
        word = secrets.token_hex(8)
        with self._errors(), self._redis.pipeline(transaction=False) as trip:
            for number in numbers:
                trip.hset(slice_key(pipeline, number), FILLING, word)
            trip.execute()
        return word

    def seal_slices(self, pipeline: str, numbers: Sequence[int], word: str) -> int:
        """Say that these slices note every overlay, but those that were lost meanwhile; returns how many do."""
        if not numbers:
            return 0
        keys = [slice_key(pipeline, number) for number in numbers]
        with self._errors():
            return int(self._seal_slices(keys=keys, args=[FILLING, WHOLE, word]))

    def lost_overlays(self, pipeline: str, number: int) -> list[str]:
        """Entities of a slice whose overlays are gone: evicted, deleted, or kept long enough."""
        with self._errors():
            fields: Any = self._redis.hkeys(slice_key(pipeline, number))
            noted = [field.decode() for field in fields if field.decode() not in (WHOLE, FILLING)]
            found: list[str] = []
            for part in chunks(noted, KEYS_PER_TRIP):
                keys = [overlay_key(pipeline, entity) for entity in part]
                there: Any = self._redis.exists(*keys)
                if int(there) < len(keys):
                    with self._redis.pipeline(transaction=False) as trip:
                        for key in keys:
                            trip.exists(key)
                        found += [entity for entity, one in zip(part, trip.execute(), strict=True) if not one]
        return found

    def forget_notes(self, pipeline: str, entities: Sequence[str]) -> None:
        """Note no longer that these entities have overlays, unless they do."""
        with self._errors():
            for entity in entities:
                keys = [slice_key(pipeline, slice_of(entity)), overlay_key(pipeline, entity)]
                self._forget_notes(keys=keys, args=[entity])

    def server(self) -> RedisServer:
        """What the server says of itself."""
        with self._errors():
            found: Any = self._redis.info()
        return RedisServer(
            run_id=str(found.get("run_id", "")),
            why_it_may_evict=why_it_may_evict(found),
            evicted_keys=int(found.get("evicted_keys", 0)),
        )


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items, so many at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
