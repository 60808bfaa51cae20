"""The proof before a generation becomes current: what lies in its table is what its run put there, all of it, once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import msgspec
from psycopg import sql

from almanac.clock import need_utc
from almanac.end_manifest import EndManifest, blocks_digest, summarize
from almanac.errors import BlockError
from almanac.pipeline import Pipeline
from serving_cache.layout import child_name
from serving_cache.postgres_client import Connection
from serving_cache.postgres_packing import packed
from serving_cache.records import Attempt

PARTITIONS_PER_STEP = 256

_STAGED = (
    "SELECT partition, block_hash, rows FROM ledger "
    "WHERE pipeline = %s AND generation = %s AND state = 'staged' ORDER BY partition"
)
_ENTRIES = (
    "SELECT partition, origin, rows, block_hash, stats FROM generation_partitions "
    "WHERE pipeline = %s AND generation = %s"
)


def staged_blocks(connection: Connection, attempt: Attempt) -> tuple[tuple[int, str, int], ...]:
    """(partition, hash, rows) of what an attempt's generation wrote itself, as the ledger has it."""
    return tuple(connection.execute(_STAGED, (attempt.pipeline, attempt.generation)).fetchall())


def prove(connection: Connection, attempt: Attempt) -> tuple[tuple[int, str, int], ...]:
    """Read every row of a generation back and compare it with the ledger, a few partitions at a time.

    Returns:
        What was proved: it must still be so when the pointer moves.

    Raises:
        BlockError: a row was changed, lost, doubled, or lies in another partition; says where.
    """
    staged = staged_blocks(connection, attempt)
    name = child_name(attempt.pipeline, attempt.generation)
    found = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name))).fetchone()
    row = connection.execute(
        "SELECT entity, outputs FROM generations WHERE pipeline = %s AND generation = %s",
        (attempt.pipeline, attempt.generation),
    ).fetchone()
    assert row is not None  # noqa: S101  (the token was checked on its row)
    assert found is not None  # noqa: S101  (an aggregate)
    wanted = sum(rows for _, _, rows in staged)
    if found[0] != wanted:
        raise BlockError(
            f"{name} has {found[0]:,} rows, its run staged {wanted:,}: rows were lost or doubled; it is not published, "
            "run the pipeline again"
        )
    steps = [staged[start : start + PARTITIONS_PER_STEP] for start in range(0, len(staged), PARTITIONS_PER_STEP)]

    def started(step: tuple[tuple[int, str, int], ...]) -> Iterator[tuple[str, bytes]]:
        blocks = packed(connection, name, (row[0], *row[1]), {partition: digest for partition, digest, _ in step})
        return chain([next(blocks)], blocks)  # the first one waits for the server

    # The server gathers the next partitions while those before are packed, and so proved.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-back") as ahead:
        pending = None
        for step in (*steps, None):
            following = None if step is None else ahead.submit(started, step)
            if pending is not None:
                deque(pending.result(), maxlen=0)
            pending = following
    return staged


def write_end_manifest(connection: Connection, attempt: Attempt, pipeline: Pipeline) -> EndManifest:
    """Make the end manifest of what `generation_partitions` has by now, and store it with the generation."""
    entries = connection.execute(_ENTRIES, (attempt.pipeline, attempt.generation)).fetchall()
    row = connection.execute(
        "SELECT as_of, cutoff, model, model_hash, outputs FROM generations WHERE pipeline = %s AND generation = %s",
        (attempt.pipeline, attempt.generation),
    ).fetchone()
    assert row is not None  # noqa: S101  (the token was checked on its row)
    as_of, cutoff, model, model_hash, outputs = row
    manifest = EndManifest(
        pipeline=attempt.pipeline,
        generation=attempt.generation,
        as_of=need_utc(as_of),
        cutoff=need_utc(cutoff),
        features=pipeline.features,
        model=model,
        model_hash=model_hash,
        partitions=len(entries),
        rows=sum(entry[2] for entry in entries),
        blocks=blocks_digest([tuple(entry[:4]) for entry in entries]),
        outputs=summarize([(entry[2], entry[4]) for entry in entries if entry[4] is not None], outputs),
    )
    connection.execute(
        "UPDATE generations SET manifest = %s::jsonb WHERE pipeline = %s AND generation = %s",
        (msgspec.json.encode(manifest).decode(), attempt.pipeline, attempt.generation),
    )
    return manifest


def read_end_manifest(connection: Connection, pipeline: str, generation: int | None) -> EndManifest | None:
    """The end manifest of a generation; None for one that has none (it was published before they were written)."""
    row = connection.execute(
        "SELECT manifest::text FROM generations WHERE pipeline = %s AND generation = %s", (pipeline, generation)
    ).fetchone()
    return None if row is None or row[0] is None else msgspec.json.decode(row[0], type=EndManifest)


def need_whole(connection: Connection, pipeline: str, generation: int) -> None:
    """Prove that a generation's manifest in the store is the one that its end manifest speaks of.

    Raises:
        BlockError: entries were lost, doubled or changed since it was published.
    """
    manifest = read_end_manifest(connection, pipeline, generation)
    if manifest is None:
        return
    entries = connection.execute(_ENTRIES, (pipeline, generation)).fetchall()
    if blocks_digest([tuple(entry[:4]) for entry in entries]) != manifest.blocks:
        raise BlockError(
            f"generation {generation} of {pipeline} has {len(entries)} blocks that do not match its end manifest of "
            f"{manifest.partitions}: somebody changed them; the current generation stays, run the pipeline again"
        )
