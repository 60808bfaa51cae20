"""What a generation is made of, written down when it is published: counts, digests, and what its outputs are like."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

Tally = tuple[float | None, float | None, float, int]
"""Of one output of one block: minimum, maximum (None if there is no value), sum, number of nulls."""


class OutputSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What the values of one output are like; numbers are None where there is no value at all."""

    minimum: float | None
    maximum: float | None
    mean: float | None
    null_share: float


class EndManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a generation: whatever it was published with stands here or is named by a digest that does.

    Args:
        partitions: how many it has; rows: predictions in them.
        blocks: SHA-256 over partition, origin, rows and hash of each block; `generation_partitions` has the
            hashes themselves.
        features: the FeatureService; outputs: by name, in the model's order.
    """

    pipeline: str
    generation: int
    as_of: datetime
    cutoff: datetime
    features: str
    model: str
    model_hash: str
    partitions: int
    rows: int
    blocks: str
    outputs: dict[str, OutputSummary]


def summarize(tallies: Iterable[tuple[int, Mapping[str, Tally]]], outputs: Iterable[str]) -> dict[str, OutputSummary]:
    """The blocks' tallies taken together.

    Args:
        tallies: each block's number of rows and its tally.
        outputs: names, in order; rows of a block that lacks one count as null.
    """
    blocks = list(tallies)
    rows = sum(count for count, _ in blocks)
    found: dict[str, OutputSummary] = {}
    for name in outputs:
        parts = [(count, mine[name]) for count, mine in blocks if name in mine]
        values = sum(count - one[3] for count, one in parts)
        found[name] = OutputSummary(
            minimum=min((one[0] for _, one in parts if one[0] is not None), default=None),
            maximum=max((one[1] for _, one in parts if one[1] is not None), default=None),
            mean=sum(one[2] for _, one in parts) / values if values else None,
            null_share=1 - values / rows if rows else 0.0,
        )
    return found


def blocks_digest(entries: Iterable[tuple[int, int, int, str]]) -> str:
    """SHA-256 over (partition, origin, rows, hash) of each block: lost, doubled or swapped ones change it."""
    digest = hashlib.sha256()
    for partition, origin, rows, block_hash in sorted(entries):
        digest.update(f"{partition} {origin} {rows} {block_hash}\n".encode())
    return digest.hexdigest()
