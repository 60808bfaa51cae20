"""Redis follows Postgres: whatever is missing is written, then the pointer moves.

The order makes every death harmless: blocks, manifests, overlays, and only then
the pointer, which Redis accepts only with a greater epoch and only if it was not
emptied meanwhile. So what the pointer names is there.

Epochs and generations are counted again from where Postgres stands after it lost
commits (an older backup, a standby that lagged). What Redis has of the lost ones
under the same numbers is found by their moments, and goes: the record wins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TypeVar

from almanac.blocks import block_hash
from almanac.clock import utc_now
from almanac.errors import BlockError, UsageError
from almanac.failpoints import passing
from almanac.pipeline import Pipeline
from serving_cache.postgres import PostgresStore
from serving_cache.records import ManifestEntry, Pointer
from serving_cache.redis import Emptied, RedisStore

log = logging.getLogger(__name__)

TRIES_MAX = 3
PARTITIONS_PER_STEP = 256
OVERLAYS_PER_STEP = 1_000  # entities
T = TypeVar("T")


def sync_redis(pipeline: Pipeline, postgres: PostgresStore, cache: RedisStore, *, overlays: bool = False) -> bool:
    """Make Redis hold what Postgres says of a pipeline; returns whether Redis's pointer moved.

    Args:
        overlays: bring every usable overlay as well. It happens anyway when Redis
            has no pointer.

    Raises:
        Unavailable: Postgres or Redis does not answer; Redis stays as it was, or further on the way.
        BlockError: rows in Postgres are not those that were published.
    """
    return bool(
        _at_pointer(pipeline, postgres, lambda pointer: _follow(pipeline, pointer, postgres, cache, overlays=overlays))
    )


def rebuild_redis(pipeline: Pipeline, postgres: PostgresStore, cache: RedisStore) -> bool:
    """Write all of a pipeline that Redis holds anew from Postgres; returns whether anything is published.

    1. write every block again, beside readers: what a block is called says what it holds;
    2. empty Redis of all the rest, the pointer first, so that readers turn to Postgres for this moment;
    3. prove the blocks, bring manifests and overlays, and last the pointer.

    Raises:
        Unavailable: Postgres or Redis does not answer; before step 2 readers lost nothing, after it they use Postgres.
        BlockError: rows in Postgres are not those that were published; Redis was not emptied.
    """
    written = _at_pointer(pipeline, postgres, lambda pointer: _written(pipeline, pointer, postgres, cache))
    cache.clear(pipeline.name, but=written or ())
    return sync_redis(pipeline, postgres, cache, overlays=True)


def _at_pointer(pipeline: Pipeline, postgres: PostgresStore, act: Callable[[Pointer], T]) -> T | None:
    """Do something with what the pointer names, again if it moved meanwhile; None if nothing is published."""
    for left in reversed(range(TRIES_MAX)):
        pointer = postgres.pointer(pipeline.name)
        if pointer is None:
            return None
        try:
            return act(pointer)
        except (BlockError, UsageError):
            # Retention may have dropped what an older pointer named.
            if not left or postgres.pointer(pipeline.name) == pointer:
                raise
        except Emptied:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def _written(pipeline: Pipeline, pointer: Pointer, postgres: PostgresStore, cache: RedisStore) -> set[str]:
    """Write every block of the generations that a pointer names, whatever Redis has; returns their hashes."""
    written: set[str] = set()
    for record in (pointer.generation, pointer.previous):
        if record is not None:
            manifest = postgres.manifest(pipeline.name, record.generation)
            wanted = {entry.block_hash for entry in manifest.values()} - written
            _bring_blocks(pipeline, record.generation, manifest, wanted, (postgres, cache))
            written |= wanted
    return written


def sync_overlays(pipeline: Pipeline, stores: tuple[PostgresStore, RedisStore], written_since: datetime | None) -> int:
    """Bring usable overlays, of every model: a generation by one that answers nothing yet is to find its own.

    Args:
        written_since: leave out what Postgres stored before; None for all.

    Returns:
        How many Redis lacked.
    """
    postgres, cache = stores
    usable_since = utc_now() - pipeline.freshness.usable_for
    pages = postgres.overlay_pages(pipeline.name, None, usable_since, written_since)
    return sum(cache.put_overlays(pipeline.name, page) for page in pages)


def restore_overlays(pipeline: Pipeline, stores: tuple[PostgresStore, RedisStore], number: int) -> int:
    """Bring back the overlays that one slice notes and Redis lost; returns of how many entities it lost some.

    Of an entity without an overlay in Postgres, whose time was up, the note goes.
    """
    postgres, cache = stores
    lost = cache.lost_overlays(pipeline.name, number)
    restored = 0
    for start in range(0, len(lost), OVERLAYS_PER_STEP):
        step = lost[start : start + OVERLAYS_PER_STEP]
        records = postgres.entity_overlays(pipeline.name, step)
        cache.put_overlays(pipeline.name, records)
        there = {record.entity for record in records}
        cache.forget_notes(pipeline.name, [entity for entity in step if entity not in there])
        restored += len(there)
    return restored


def _follow(
    pipeline: Pipeline, pointer: Pointer, postgres: PostgresStore, cache: RedisStore, *, overlays: bool
) -> bool:
    name = pipeline.name
    found, was_empty = _standing(cache, name)
    if found is not None and of_lost_commits(found, pointer):
        if found.epoch > pointer.epoch:
            return False  # what is ahead stays whole until somebody rebuilds it: nothing of it is written over
        log.warning("redis pipeline=%s was at epoch %d of commits that Postgres lost: it is rebuilt", name, found.epoch)
        cache.clear(name, but=_written(pipeline, pointer, postgres, cache))
        was_empty = True
    marker = cache.mark(name)
    found, is_empty = _standing(cache, name)  # again: it may have been emptied just before the marker was made
    epoch = 0 if found is None else found.epoch
    refilled = was_empty or is_empty
    held: set[str] = set()
    for record in (pointer.generation, pointer.previous):
        if record is not None:
            unproved = refilled or (record is pointer.generation and epoch < pointer.epoch)
            held |= bring_generation(pipeline, record.generation, postgres, cache, prove=unproved)
    unsealed = cache.unsealed_slices(name)
    if overlays or refilled or unsealed:
        word = cache.begin_slices(name, unsealed)
        sync_overlays(pipeline, (postgres, cache), None)
        cache.seal_slices(name, unsealed, word)
    moved = cache.move_pointer(pointer, marker)
    passing("sync.pointer-moved")
    # Now that no older follower can let them go (`let_go` looks at the epoch), hold what this pointer names.
    cache.hold(pointer, held)
    passing("sync.held")
    cache.let_go(pointer, held)
    if moved:
        log.info("redis pipeline=%s epoch=%d generation=%d", name, pointer.epoch, pointer.generation.generation)
    return moved


def bring_generation(
    pipeline: Pipeline, generation: int, postgres: PostgresStore, cache: RedisStore, *, prove: bool
) -> set[str]:
    """Write the blocks of a generation that Redis lacks, and its manifest; returns the hashes of all.

    Args:
        prove: read every block back, and write again what is not what its name says.

    Raises:
        BlockError: Redis does not hold what was written to it, twice.
    """
    name = pipeline.name
    manifest = postgres.manifest(name, generation)
    hashes = {entry.block_hash for entry in manifest.values()}
    missing = set(cache.missing_blocks(name, generation, hashes))
    _bring_blocks(pipeline, generation, manifest, missing, (postgres, cache))
    if prove:
        damaged = _damaged(name, hashes, cache)
        if damaged:
            log.warning("redis pipeline=%s has %d damaged blocks: they are written again", name, len(damaged))
            _bring_blocks(pipeline, generation, manifest, damaged, (postgres, cache))
            if _damaged(name, damaged, cache):
                raise BlockError(
                    f"Redis does not give back the blocks of generation {generation} of {name} as they were written: "
                    f"its pointer stays; look at the server, then run `almanac rebuild {name}`"
                )
    passing("sync.blocks-written")
    if _held_manifest(name, generation, cache) != manifest:
        cache.put_manifest(name, generation, manifest)
    passing("sync.manifest-written")
    return hashes


def prove_rows(pipeline: Pipeline, generation: int, postgres: PostgresStore) -> None:
    """Read a generation's rows back, a few partitions at a time, and compare them with its manifest.

    Raises:
        BlockError: rows are gone, or are not those that were published.
    """
    partitions = list(postgres.manifest(pipeline.name, generation))
    for start in range(0, len(partitions), PARTITIONS_PER_STEP):
        postgres.blocks(pipeline, generation, partitions[start : start + PARTITIONS_PER_STEP])


def _damaged(pipeline: str, hashes: set[str], cache: RedisStore) -> set[str]:
    """Those of the blocks that are missing, or not what their name says."""
    found: set[str] = set()
    wanted = sorted(hashes)
    for start in range(0, len(wanted), PARTITIONS_PER_STEP):
        step = wanted[start : start + PARTITIONS_PER_STEP]
        blocks = cache.blocks(pipeline, step)
        found |= {digest for digest in step if digest not in blocks or block_hash(blocks[digest]) != digest}
    return found


def of_lost_commits(found: Pointer, wanted: Pointer) -> bool:
    """Whether a pointer in Redis speaks of commits that this Postgres does not have.

    Then an epoch or a generation of one number is not the same move, or the same generation, in both.
    """
    if found.epoch == wanted.epoch and (found.generation.generation, found.moved_at) != (
        wanted.generation.generation,
        wanted.moved_at,
    ):
        return True
    opened = {record.generation: record.created_at for record in (found.generation, found.previous) if record}
    return any(
        opened.get(record.generation, record.created_at) != record.created_at
        for record in (wanted.generation, wanted.previous)
        if record is not None
    )


def _held_manifest(pipeline: str, generation: int, cache: RedisStore) -> dict[int, ManifestEntry] | None:
    """A manifest as Redis has it; None if it cannot be read. By its length a lost one could not be told from it."""
    try:
        return cache.manifest(pipeline, generation)
    except BlockError:
        return None


def _standing(cache: RedisStore, pipeline: str) -> tuple[Pointer | None, bool]:
    """The pointer that Redis has, and whether it has to be filled again."""
    try:
        pointer, marker = cache.pointer_and_marker(pipeline)
    except BlockError as error:
        log.warning("redis pipeline=%s forgets its pointer: %s", pipeline, error)
        cache.forget_pointer(pipeline)
        return None, True
    return pointer, pointer is None or marker is None


def _bring_blocks(
    pipeline: Pipeline,
    generation: int,
    manifest: Mapping[int, ManifestEntry],
    wanted: set[str],
    stores: tuple[PostgresStore, RedisStore],
) -> None:
    postgres, cache = stores
    partitions = [partition for partition, entry in manifest.items() if entry.block_hash in wanted]
    for start in range(0, len(partitions), PARTITIONS_PER_STEP):
        step = partitions[start : start + PARTITIONS_PER_STEP]
        cache.put_blocks(pipeline.name, postgres.blocks(pipeline, generation, step))
