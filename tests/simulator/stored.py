"""What `MemoryRecord` holds, and the small decisions about it. Bugs are planted here by replacing a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from almanac.blocks import block_hash, decode
from serving_cache.records import Attempt, GenerationRecord, ManifestEntry


@dataclass(frozen=True)
class Decided:
    """What the ledger says of a partition."""

    state: str
    token: int
    block_hash: str = ""
    rows: int = 0
    as_of: datetime | None = None
    computed_at: datetime | None = None
    reason: str = ""


@dataclass
class Stored:
    """A generation: its row, its ledger, its table (None once dropped), its manifest and the digest of that.

    Args:
        active_at: when its run last did something.
    """

    record: GenerationRecord
    token: int
    planned: tuple[int, ...]
    ledger: dict[int, Decided]
    table: dict[int, bytes] | None = field(default_factory=dict)
    manifest: dict[int, ManifestEntry] = field(default_factory=dict)
    digest: str = ""
    active_at: datetime | None = None


def may_claim(decided: Decided, attempt: Attempt) -> bool:
    """Whether an attempt may stage a partition: nobody has, or an earlier attempt quarantined it."""
    return decided.state == "planned" or (decided.state == "quarantined" and decided.token < attempt.token)


def take_out(found: Stored, partition: int) -> None:
    """Remove a partition's rows."""
    if found.table is not None:
        found.table.pop(partition, None)


def hash_of(data: bytes) -> str:
    """The hash of rows as they are packed; damage that no longer decodes is some other hash."""
    return block_hash(data)


def staged_of(found: Stored) -> tuple[tuple[int, str], ...]:
    """What a generation wrote itself, as its ledger has it."""
    return tuple((p, d.block_hash) for p, d in sorted(found.ledger.items()) if d.state == "staged")


def lines(manifest: Mapping[int, ManifestEntry]) -> list[tuple[int, int, int, str]]:
    """A manifest as its digest is taken."""
    return [(entry.partition, entry.origin, entry.rows, entry.block_hash) for entry in manifest.values()]


def manifest_of(found: Stored, every: Mapping[int, Stored], current: Stored | None) -> dict[int, ManifestEntry]:
    """What a generation staged, and what it carries forward from the current one."""
    number, manifest = found.record.generation, {}
    for partition, decided in found.ledger.items():
        if decided.state == "staged":
            assert decided.as_of is not None
            assert decided.computed_at is not None
            manifest[partition] = ManifestEntry(
                partition=partition,
                origin=number,
                block_hash=decided.block_hash,
                rows=decided.rows,
                as_of=decided.as_of,
                computed_at=decided.computed_at,
                model=found.record.model,
            )
        elif current is not None and partition in current.manifest:
            old = current.manifest[partition]
            origin = every[old.origin].record
            if (origin.outputs, origin.partitioning) == (found.record.outputs, found.record.partitioning):
                manifest[partition] = msgspec.structs.replace(old, reason=decided.reason or "not scored")
    return manifest


def values_of(data: bytes) -> dict[int, float]:
    """A block as entity to its first output."""
    block = decode(data)
    column = next(iter(block.columns.values()))
    return dict(zip(block.keys.tolist(), column.tolist(), strict=True))
