"""`MemoryCache`: what `RedisStore` does, in memory, with time to live by the virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from almanac.decisions import is_newer, newest
from serving_cache.layout import decode_pointer, encode_record
from serving_cache.records import ManifestEntry, OverlayRecord, Pointer
from serving_cache.redis import GRACE_SECONDS, UNREFERENCED_SECONDS, Emptied
from serving_cache.redis_overlays import OVERLAY_KEPT, RedisServer
from tests.simulator.hub import Hub

BLOCKS_PER_TRIP = 2
T = TypeVar("T")


class MemoryCache:
    """One pipeline's keys. Each method is a step, or several where Redis takes several round trips."""

    where = "memory"

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.damage: Callable[[bytes], bytes] = bytes  # what the server makes of a block that it is given
        self.pointed: Callable[[bytes | None, bytes], None] = lambda *_: None  # sees each move of the pointer
        self.before: Callable[[], None] = lambda: None  # what happens to the server just then
        self.keys: dict[str, tuple[Any, float | None]] = {}
        self._markers = 0

    # What readers read

    def pointer(self, pipeline: str) -> Pointer | None:
        return self.pointer_and_marker(pipeline)[0]

    def pointer_and_marker(self, pipeline: str) -> tuple[Pointer | None, str | None]:
        found = self._trip("pointer", lambda: (self.get(f"{pipeline}:pointer"), self.get(f"{pipeline}:marker")))
        return None if found[0] is None else decode_pointer(found[0]), found[1]

    def manifest(self, pipeline: str, generation: int) -> dict[int, ManifestEntry]:
        return self._trip("manifest", lambda: dict(self.get(f"{pipeline}:manifest:{generation}") or {}))

    def blocks(self, pipeline: str, hashes: Iterable[str]) -> dict[str, bytes]:
        names = list(hashes)
        found = self._trip("blocks", lambda: {name: self.get(f"{pipeline}:block:{name}") for name in names})
        return {name: data for name, data in found.items() if data is not None}

    def overlays(self, pipeline: str, entity: str) -> dict[str, OverlayRecord]:
        return self._trip("overlays", lambda: dict(self.get(f"{pipeline}:overlay:{entity}") or {}))

    # What `sync_redis` writes

    def mark(self, pipeline: str) -> str:
        def act() -> str:
            if self.get(f"{pipeline}:marker") is None:
                self._markers += 1
                self.put(f"{pipeline}:marker", f"m{self._markers}")
            return str(self.get(f"{pipeline}:marker"))

        return self._trip("mark", act)

    def missing_blocks(self, pipeline: str, generation: int, hashes: Iterable[str]) -> list[str]:
        names = sorted(set(hashes))
        self._trip("keep manifest", partial(self._missing, [f"{pipeline}:manifest:{generation}"]))
        keys = [f"{pipeline}:block:{name}" for name in names]
        return [names[i] for i in self._trip("missing", partial(self._missing, keys))]

    def hold(self, pointer: Pointer, hashes: Iterable[str]) -> None:
        name = pointer.pipeline
        for digest in sorted(set(hashes)):
            self._trip("persist", partial(self._persist, f"{name}:block:{digest}"))
        for generation in named(pointer):
            self._trip("hold", partial(self._hold, name, generation))

    def forget_pointer(self, pipeline: str) -> None:
        self._trip("forget", lambda: self.keys.pop(f"{pipeline}:pointer", None))

    def put_blocks(self, pipeline: str, blocks: Mapping[str, bytes]) -> None:
        items = list(blocks.items())
        for start in range(0, len(items), BLOCKS_PER_TRIP):
            part = items[start : start + BLOCKS_PER_TRIP]
            self._trip("put blocks", partial(self._put_blocks, pipeline, part))

    def put_manifest(self, pipeline: str, generation: int, manifest: Mapping[int, ManifestEntry]) -> None:
        def act() -> None:
            self.put(f"{pipeline}:manifest:{generation}", dict(manifest), UNREFERENCED_SECONDS)

        if manifest:
            self._trip("put manifest", act)

    def move_pointer(self, pointer: Pointer, marker: str) -> bool:
        def act() -> int:
            if self.get(f"{pointer.pipeline}:marker") != marker:
                return -1
            stored = self.get(f"{pointer.pipeline}:pointer")
            if stored is not None and not epoch_is_greater(pointer.epoch, decode_pointer(stored).epoch):
                return 0
            self.put(f"{pointer.pipeline}:pointer", encode_record(pointer))
            return 1

        moved = self._trip("move pointer", act)
        if moved < 0:
            raise Emptied("emptied since: write it again")
        return moved == 1

    def let_go(self, pointer: Pointer, kept: Iterable[str]) -> int:
        name, holding, gone = pointer.pipeline, set(kept), 0
        held = self._trip("generations", lambda: set(self.get(f"{name}:generations") or ()))
        for generation in sorted(held - named(pointer)):
            hashes = {entry.block_hash for entry in self.manifest(name, generation).values()} - holding
            keys = [f"{name}:block:{digest}" for digest in sorted(hashes)] + [f"{name}:manifest:{generation}"]
            gone += self._trip("let go", partial(self._let_go, pointer, keys, generation))
        return gone

    def put_overlays(self, pipeline: str, records: Sequence[OverlayRecord], keep_for: timedelta = OVERLAY_KEPT) -> int:
        def act() -> int:
            written = 0
            for record in newest(records):
                held = dict(self.get(f"{pipeline}:overlay:{record.entity}") or {})
                stored = held.get(record.model)
                if is_newer(record.sequence, None if stored is None else stored.sequence):
                    held[record.model] = record
                    self.put(f"{pipeline}:overlay:{record.entity}", held, keep_for.total_seconds())
                    written += 1
            return written

        return self._trip("put overlays", act)

    # Its overlays are lost with all the rest alone: nothing is noted of them.

    def unsealed_slices(self, pipeline: str) -> list[int]:
        return []

    def begin_slices(self, pipeline: str, numbers: Sequence[int]) -> str:
        return ""

    def seal_slices(self, pipeline: str, numbers: Sequence[int], word: str) -> int:
        return 0

    def lost_overlays(self, pipeline: str, number: int) -> list[str]:
        return []

    def server(self) -> RedisServer:
        return RedisServer(run_id="memory", why_it_may_evict=None, evicted_keys=0)

    def clear(self, pipeline: str, *, but: Collection[str] = ()) -> None:
        def act() -> None:
            kept = {f"{pipeline}:block:{name}" for name in but}
            self.keys = {key: found for key, found in self.keys.items() if key in kept}

        self._trip("clear", act)

    # Inside

    def get(self, key: str) -> Any:
        """A value that has not run out."""
        found = self.keys.get(key)
        if found is None or (found[1] is not None and found[1] <= self.hub.seconds):
            return None
        return found[0]

    def put(self, key: str, value: Any, seconds: float | None = None) -> None:
        """Store a value, for ever or for a time."""
        if key.endswith(":pointer"):
            self.pointed(self.get(key), value)
        self.keys[key] = (value, None if seconds is None else self.hub.seconds + seconds)

    def _trip(self, operation: str, act: Callable[[], T]) -> T:
        self.hub.step(f"redis {operation}")
        self.before()
        found = act()
        self.hub.answer(f"redis {operation}")
        return found

    def _missing(self, keys: list[str]) -> list[int]:
        for key in keys:
            ends = self.keys.get(key, (None, None))[1]
            if self.get(key) is not None and ends is not None and ends - self.hub.seconds < UNREFERENCED_SECONDS:
                self.put(key, self.get(key), UNREFERENCED_SECONDS)
        return [i for i, key in enumerate(keys) if self.get(key) is None]

    def _persist(self, key: str) -> None:
        value = self.get(key)
        if value is not None:
            self.put(key, value)

    def _hold(self, pipeline: str, generation: int) -> None:
        self._persist(f"{pipeline}:manifest:{generation}")
        self.put(f"{pipeline}:generations", {*(self.get(f"{pipeline}:generations") or ()), generation})

    def _put_blocks(self, pipeline: str, part: list[tuple[str, bytes]]) -> None:
        for digest, data in part:
            key = f"{pipeline}:block:{digest}"
            self.put(key, self.damage(data) if self.get(key) is None else data, UNREFERENCED_SECONDS)

    def _let_go(self, pointer: Pointer, keys: list[str], generation: int) -> int:
        stored = self.get(f"{pointer.pipeline}:pointer")
        if stored is None or decode_pointer(stored).epoch != pointer.epoch:
            return 0
        for key in keys:
            value = self.get(key)
            if value is not None:
                self.put(key, value, GRACE_SECONDS)
        held = set(self.get(f"{pointer.pipeline}:generations") or ())
        self.put(f"{pointer.pipeline}:generations", held - {generation})
        return int(generation in held)


def named(pointer: Pointer) -> set[int]:
    """The generations that a pointer names."""
    return {record.generation for record in (pointer.generation, pointer.previous) if record is not None}


def epoch_is_greater(candidate: int, stored: int) -> bool:
    """Whether a pointer may replace the stored one."""
    return candidate > stored
