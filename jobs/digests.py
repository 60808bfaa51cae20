"""What a partition's predictions depend on, as digests: its features, and the code with the declaration.

Two runs with equal digests, by one model, would come to equal predictions; so
the second need not score. Features count by their bytes, column by column, in
the order of the entities; the event time does not count, nor the order of columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.pipeline import Pipeline

if TYPE_CHECKING:
    import pyarrow as pa

PARTITION = "_partition"
UNCOUNTED = frozenset({PARTITION, "event_timestamp"})
CODE = (
    "almanac.scoring",
    "almanac.block_layout",
    "almanac.blocks",
    "almanac.list_blocks",
    "almanac.partitioning",
    "almanac.candidate_items",
    "almanac.list_scoring",
    "almanac.ragged",
    "almanac.ranking",
    "almanac.ranking_rows",
    "jobs.building",
    "jobs.listing",
    "jobs.gate",
    "jobs.digests",
    "almanac.block_merging",
    "jobs.changed",
    "jobs.entity_digests",
)
"""The modules that make blocks of features, and judge both."""
LIBRARIES = ("onnxruntime", "great-expectations")


def code_digest(pipeline: Pipeline) -> str:
    """The digest of the code and of what the declaration says about a partition's predictions, its gates included."""
    declared = [
        pipeline.entity,
        repr(pipeline.partitions),
        list(pipeline.output_names),
        pipeline.features,
        repr(pipeline.ranking),
        [
            [gate.on, gate.expectation, {name: repr(gate.kwargs[name]) for name in gate.kwargs}]
            for gate in pipeline.gates
        ],
    ]
    text = json.dumps([declared, _code()], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@cache
def _code() -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in CODE:
        spec = find_spec(name)
        assert spec is not None  # noqa: S101  (our own modules)
        assert spec.origin is not None  # noqa: S101
        digest.update(name.encode() + b"\0" + Path(spec.origin).read_bytes())
    for name in LIBRARIES:
        digest.update(f"{name} {version(name)}\0".encode())
    return digest.hexdigest()


def partition_digests(table: pa.Table, partitions: Iterable[int]) -> dict[int, str]:
    """The digest of each partition's features; one without rows has a digest too.

    Args:
        table: `_partition`, and the entity and feature columns; a partition's rows stand together.
        partitions: of which to give the digests.
    """
    columns = [(name, *_bytes_of(table[name].combine_chunks())) for name in sorted(set(table.column_names) - UNCOUNTED)]
    heading = hashlib.blake2b(repr([(name, kind) for name, kind, _, _, _ in columns]).encode(), digest_size=16)
    digests = dict.fromkeys(partitions, heading)
    for part, start, end in spans_of(table):
        if part not in digests:
            continue
        digest = digests[part] = heading.copy()
        hollow = [number for number, one in enumerate(columns) if one[4] is not None and not one[4][start:end].all()]
        digest.update(repr((end - start, hollow)).encode())
        for number, (_, _, values, width, present) in enumerate(columns):
            digest.update(values[start * width : end * width])
            if present is not None and number in hollow:
                digest.update(present[start:end].tobytes())
    return {partition: digest.hexdigest() for partition, digest in digests.items()}


def spans_of(table: pa.Table) -> list[tuple[int, int, int]]:
    """Each partition that has rows, with its first row and the one after its last."""
    owners = table[PARTITION].to_numpy()
    if not len(owners):
        return []
    starts = np.flatnonzero(np.diff(owners, prepend=owners[0] - 1))
    ends = [*starts[1:].tolist(), len(owners)]
    return list(zip(owners[starts].tolist(), starts.tolist(), ends, strict=True))


def _bytes_of(column: Any) -> tuple[str, memoryview, int, np.ndarray[Any, Any] | None]:
    """A column's kind, its values as bytes, how many a row has, and which are there; what is null counts as zero."""
    import pyarrow as pa
    import pyarrow.compute as pc

    present = None if not column.null_count else column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        filled = pc.fill_null(column, pa.scalar(0, column.type)) if column.null_count else column
        values: Any = np.ascontiguousarray(filled.to_numpy(zero_copy_only=False))
        return str(column.type), memoryview(values).cast("B"), values.itemsize, present
    # Keys and the like: a digest a row, so that every row has the same width.
    texts = column.cast(pa.string()).to_pylist()
    short = b"".join(hashlib.blake2b((text or "").encode(), digest_size=16).digest() for text in texts)
    return "text", memoryview(short), 16, present
