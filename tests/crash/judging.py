"""The verdict on one lane: what readers saw beside every move of the pointer, then both stores beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from almanac.pipeline import Pipeline
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.crash.harness import Found

UNREAD_MOVES_MAX = 10
"""So much may happen before a reader's first answer."""

_MOVES = (
    "SELECT m.epoch, m.kind, m.generation, g.run_key, g.as_of FROM pointer_moves m "
    "JOIN generations g USING (pipeline, generation) WHERE pipeline = %s ORDER BY m.epoch"
)


class _Move(NamedTuple):
    kind: str
    generation: int
    value: int
    as_of: datetime


def judge(found: Found, pipeline: Pipeline, urls: tuple[str, str], seen: Sequence[Mapping[str, Any]]) -> None:
    """Add to what was found of a pipeline, whose workers have all ended.

    Args:
        seen: what readers wrote down of it.
    """
    with psycopg.connect(urls[0]) as connection:
        moves = {
            epoch: _Move(kind, generation, int(run_key.split()[1]), as_of)
            for epoch, kind, generation, run_key, as_of in connection.execute(_MOVES, (pipeline.name,)).fetchall()
        }
    found.rollbacks += sum(move.kind == "rollback" for move in moves.values())
    found.wrong += [f"{pipeline.name}: {text}" for text in [*_misread(found, moves, seen), *_torn(moves)]]
    with PostgresStore(urls[0]) as store, RedisStore(urls[1]) as cache:
        sync_redis(pipeline, store, cache)
        pointer = store.pointer(pipeline.name)
        if pointer != cache.pointer(pipeline.name):
            found.wrong.append(f"{pipeline.name}: Redis does not follow")
        elif pointer is not None:  # proves each block against its hash
            store.blocks(pipeline, pointer.generation.generation, range(pipeline.partitions.count))


def _torn(moves: Mapping[int, _Move]) -> list[str]:
    published = Counter(move.generation for move in moves.values() if move.kind == "publish")
    wrong = [f"generation {number} was published {n} times" for number, n in published.items() if n > 1]
    if sorted(moves) != list(range(1, len(moves) + 1)):
        wrong.append("an epoch is missing")
        return wrong
    return wrong + [
        f"epoch {epoch}: generation {move.generation} moved readers back"
        for epoch, move in moves.items()
        if move.kind == "publish" and epoch > 1 and move.as_of < moves[epoch - 1].as_of
    ]


def _misread(found: Found, moves: Mapping[int, _Move], seen: Sequence[Mapping[str, Any]]) -> list[str]:
    wrong = []
    epochs: set[int] = set()
    for one in seen:
        found.reads += one["reads"]
        found.unanswered += one["unanswered"]
        wrong += one["wrong"]
        if not one["by_epoch"] and len(moves) > UNREAD_MOVES_MAX:
            wrong.append("a reader read nothing")
        for epoch, generation, value in one["by_epoch"]:
            epochs.add(epoch)
            if epoch not in moves or (moves[epoch].generation, moves[epoch].value) != (generation, int(value)):
                wrong.append(f"epoch {epoch} was read as generation {generation} of run {value}")
    found.epochs_read += len(epochs)
    return wrong
