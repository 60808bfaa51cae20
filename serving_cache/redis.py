"""`RedisStore`: packed blocks, manifests, the pointer and overlays. Nothing here but what Postgres can rebuild.

`layout.py` names the keys. What the pointer no longer names is let go after
`GRACE_SECONDS`, so that a reader which has just read the pointer still finds
what it names. Blocks that no manifest ever referred to go after a day.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from almanac.errors import BlockError, Unavailable
from almanac.redis_url import redis_address
from serving_cache import redis_scripts as scripts
from serving_cache.layout import (
    block_key,
    decode_manifest_entry,
    decode_pointer,
    encode_record,
    generations_key,
    manifest_key,
    marker_key,
    pointer_key,
)
from serving_cache.records import ManifestEntry, Pointer
from serving_cache.redis_overlays import KEYS_PER_TRIP, RedisOverlays, chunks

CONNECT_TIMEOUT_SECONDS = 2
SOCKET_TIMEOUT_SECONDS = 5
RETRIES_MAX = 1  # a connection may have died with the server that it was made to
BYTES_PER_TRIP = 8 * 1024 * 1024
GRACE_SECONDS = 600
UNREFERENCED_SECONDS = 86_400

_TRANSIENT = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
    redis.exceptions.TryAgainError,
    OSError,
)
_FULL = ("MISCONF", "OOM command not allowed")
"""What Redis says when it refuses to grow; the driver has no class for the first, nor for the second from a script."""
T = TypeVar("T")


class Emptied(Unavailable):
    """Redis was emptied while it was written; write everything again."""


class RedisStore(RedisOverlays):
    """The generation store's cache.

    Every method raises `Unavailable` when Redis does not answer in time, and
    `BlockError` when it holds something that is not ours.

    Args:
        url: redis:// URL.

    Raises:
        UsageError: the URL cannot be read.
    """

    def __init__(self, url: str) -> None:
        address = redis_address(url).need_files()
        self.where = address.where
        self._redis = redis.Redis(
            **address.client(),
            socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
            socket_timeout=SOCKET_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), RETRIES_MAX),
            client_name="almanac",
        )
        self._move_pointer = self._redis.register_script(scripts.MOVE_POINTER)
        self._let_go = self._redis.register_script(scripts.LET_GO)
        self._find_missing = self._redis.register_script(scripts.MISSING)
        self._register()

    def close(self) -> None:
        """Close the connections; using the store again opens others."""
        self._redis.close()

    # What readers read

    def pointer(self, pipeline: str) -> Pointer | None:
        """What readers read now; None if Redis knows nothing of the pipeline."""
        return self.pointer_and_marker(pipeline)[0]

    def pointer_and_marker(self, pipeline: str) -> tuple[Pointer | None, str | None]:
        """The pointer, and the marker that is gone once Redis was emptied."""
        with self._errors():
            pointer, marker = _commands(self._redis.mget([pointer_key(pipeline), marker_key(pipeline)]))
        return (None if pointer is None else decode_pointer(pointer), None if marker is None else marker.decode())

    def manifest(self, pipeline: str, generation: int) -> dict[int, ManifestEntry]:
        """Partition to the block that holds it; empty if Redis has no such manifest."""
        with self._errors():
            found = _commands(self._redis.hgetall(manifest_key(pipeline, generation)))
        return {int(partition): decode_manifest_entry(data) for partition, data in sorted(found.items())}

    def blocks(self, pipeline: str, hashes: Iterable[str]) -> dict[str, bytes]:
        """The blocks that are there, by hash."""
        found: dict[str, bytes] = {}
        with self._errors():
            for part in chunks(list(hashes), KEYS_PER_TRIP):
                values = _commands(self._redis.mget([block_key(pipeline, digest) for digest in part]))
                found.update({digest: data for digest, data in zip(part, values, strict=True) if data is not None})
        return found

    # What `sync_redis` writes

    def mark(self, pipeline: str) -> str:
        """The marker, made if it is gone: what is written from here on is whole while it stays the same."""
        key = marker_key(pipeline)
        with self._errors(), self._redis.pipeline(transaction=True) as trip:
            trip.set(key, secrets.token_hex(8), nx=True)
            trip.get(key)
            return str(trip.execute()[1].decode())

    def missing_blocks(self, pipeline: str, generation: int, hashes: Iterable[str]) -> list[str]:
        """Those of a generation's blocks that are not there; the others, and its manifest, stay for a day at least."""
        missing: list[str] = []
        with self._errors():
            self._find_missing(keys=[manifest_key(pipeline, generation)], args=[UNREFERENCED_SECONDS])
            for part in chunks(sorted(set(hashes)), KEYS_PER_TRIP):
                keys = [block_key(pipeline, digest) for digest in part]
                missing += [part[i - 1] for i in self._find_missing(keys=keys, args=[UNREFERENCED_SECONDS])]
        return missing

    def hold(self, pointer: Pointer, hashes: Iterable[str]) -> None:
        """Keep these blocks, and the manifests that the pointer names, until `let_go`."""
        name = pointer.pipeline
        with self._errors(), self._redis.pipeline(transaction=False) as trip:
            for part in chunks(sorted(set(hashes)), KEYS_PER_TRIP):
                for digest in part:
                    trip.persist(block_key(name, digest))
                trip.execute()
            for generation in _named(pointer):
                trip.persist(manifest_key(name, generation))
                trip.sadd(generations_key(name), generation)
            trip.execute()

    def forget_pointer(self, pipeline: str) -> None:
        """Remove a pointer that cannot be read; readers turn to Postgres until the next one."""
        with self._errors():
            self._redis.delete(pointer_key(pipeline))

    def put_blocks(self, pipeline: str, blocks: Mapping[str, bytes]) -> None:
        """Write blocks by hash; they go after a day unless a manifest comes to hold them."""
        with self._errors():
            for part in _by_size(blocks):
                with self._redis.pipeline(transaction=False) as trip:
                    for digest, data in part:
                        trip.set(block_key(pipeline, digest), data, ex=UNREFERENCED_SECONDS)
                    trip.execute()

    def put_manifest(self, pipeline: str, generation: int, manifest: Mapping[int, ManifestEntry]) -> None:
        """Write a generation's manifest, whole; it goes after a day unless a pointer comes to name it."""
        if not manifest:
            return
        key = manifest_key(pipeline, generation)
        fields = {str(partition): encode_record(entry) for partition, entry in manifest.items()}
        with self._errors(), self._redis.pipeline(transaction=True) as trip:
            trip.delete(key)
            trip.hset(key, mapping=fields)
            trip.expire(key, UNREFERENCED_SECONDS)
            trip.execute()

    def move_pointer(self, pointer: Pointer, marker: str) -> bool:
        """Move the pointer, only to a greater epoch; returns whether it moved.

        Args:
            marker: what `mark` returned before blocks and manifests were written.

        Raises:
            Emptied: Redis was emptied since; write everything again.
        """
        keys = [pointer_key(pointer.pipeline), marker_key(pointer.pipeline)]
        with self._errors():
            moved = int(self._move_pointer(keys=keys, args=[pointer.epoch, encode_record(pointer), marker]))
        if moved < 0:
            raise Emptied(f"Redis at {self.where} was emptied while {pointer.pipeline} was written: write it again")
        return moved == 1

    def let_go(self, pointer: Pointer, kept: Iterable[str]) -> int:
        """Give manifests that the pointer does not name, and their blocks but the `kept` ones, `GRACE_SECONDS`.

        Does nothing once Redis is at another epoch. Returns how many generations went.
        """
        name = pointer.pipeline
        holding = set(kept)
        gone = 0
        with self._errors():
            held = {int(member) for member in _commands(self._redis.smembers(generations_key(name)))}
            for generation in sorted(held - _named(pointer)):
                manifest = self.manifest(name, generation)
                hashes = {entry.block_hash for entry in manifest.values()} - holding
                keys = [block_key(name, digest) for digest in sorted(hashes)] + [manifest_key(name, generation)]
                for part in chunks(keys, KEYS_PER_TRIP):
                    guarded = [pointer_key(name), generations_key(name), *part]
                    last = generation if part[-1] == keys[-1] else ""
                    gone += int(self._let_go(keys=guarded, args=[pointer.epoch, GRACE_SECONDS, last]))
        return gone

    def clear(self, pipeline: str, *, but: Collection[str] = ()) -> None:
        """Remove all that is here of a pipeline; the pointer first, so that readers turn to Postgres meanwhile.

        Args:
            but: hashes of blocks that stay.
        """
        guards = [pointer_key(pipeline), marker_key(pipeline)]
        kept = {block_key(pipeline, digest).encode() for digest in but}
        with self._errors():
            self._redis.delete(*guards)
            found = self._redis.scan_iter(match=every_key(pipeline), count=1000)
            for part in chunks([key for key in found if key not in kept], KEYS_PER_TRIP):
                self._redis.unlink(*part)
            self._redis.delete(*guards)  # what a reconciler wrote in between is not whole

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except _TRANSIENT as error:
            raise Unavailable(
                f"Redis at {self.where} did not answer ({_first_line(error)}): retry, or look at `almanac status`"
            ) from error
        except redis.exceptions.RedisError as error:
            if any(word in str(error) for word in _FULL):
                raise Unavailable(
                    f"Redis at {self.where} has no room, in memory or on its disk ({_first_line(error)}): "
                    "free some or raise its limit; it goes on by itself"
                ) from error
            raise BlockError(
                f"Redis at {self.where} holds something else or refused ({_first_line(error)}): run `almanac rebuild`"
            ) from error


def every_key(pipeline: str) -> str:
    """Pattern of every key of a pipeline."""
    return pointer_key(pipeline).removesuffix("pointer") + "*"


def _named(pointer: Pointer) -> set[int]:
    return {record.generation for record in (pointer.generation, pointer.previous) if record is not None}


def _commands(answer: Any) -> Any:
    """The answer of the synchronous client, whose types also allow for the asynchronous one."""
    return answer


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _by_size(blocks: Mapping[str, bytes]) -> Iterator[list[tuple[str, bytes]]]:
    """Blocks in groups of at most `BYTES_PER_TRIP` and `KEYS_PER_TRIP`, or of one that is larger."""
    group: list[tuple[str, bytes]] = []
    size = 0
    for digest, data in blocks.items():
        if group and (size + len(data) > BYTES_PER_TRIP or len(group) >= KEYS_PER_TRIP):
            yield group
            group, size = [], 0
        group.append((digest, data))
        size += len(data)
    if group:
        yield group
