"""What a partition's predictions depend on, as digests: its features, and the code with the declaration.

Two runs with equal digests, by one model, would come to equal predictions; so
the second need not score. Features count by their bytes, column by column, in
the order of the entities; the event time does not count, nor the order of columns.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import CellType, FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.code.following import code_of, own_code_of
from almanac.declarations import places
from almanac.pipeline import Pipeline
from almanac.settings import settings

if TYPE_CHECKING:
    import pyarrow as pa

PARTITION = "_partition"
UNCOUNTED = frozenset({PARTITION, "event_timestamp"})
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Of an object, such as a lock; it is another in each process."""
STEPS = ("jobs.plan", "jobs.check", "jobs.score")
"""Where the steps begin that a prediction comes from; what these import is found, and all that that imports."""
UNCOUNTED_FIELDS = frozenset(
    {
        "schedule", "model", "freshness", "stream", "fresh", "default", "coverage_min", "generations_kept",
        "previous_kept", "rolled_back_kept", "jump", "may_publish", "shard_partitions", "changed_only", "training",
        "integrity", "owner", "description", "tags",
    }
)  # fmt: skip
"""Fields of a declaration that no prediction of a batch run depends on; whatever else it says counts."""


def code_digest(pipeline: Pipeline) -> str:
    """The digest of the code and of what the declaration says about a partition's predictions, its gates included.

    The code is all that the steps of a run can execute, found by following imports, with the versions of Python and of
    the libraries; and what the declarations' own modules define beside pipelines, such as an expectation.
    """
    declared = {name: said(value) for name, value in vars(pipeline).items() if name not in UNCOUNTED_FIELDS}
    own = own_code_of(places(settings().pipelines))
    text = json.dumps([declared, code_of(STEPS).digest, own.digest], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def said(value: Any) -> Any:
    """What a declared value says, as JSON in one order, whatever order a dictionary or a set has in this process."""
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, {one.name: said(getattr(value, one.name)) for one in fields(value)}]
    if isinstance(value, Mapping):
        return {repr(name): said(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [said(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(said(one), sort_keys=True) for one in value)
    if isinstance(value, FunctionType):
        return _function(value)
    if isinstance(value, partial):
        return ["partial", said(value.func), said(value.args), said(value.keywords)]
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:  # whose text leaves out what is in the middle
        digest = hashlib.blake2b(np.ascontiguousarray(value).tobytes(), digest_size=16).hexdigest()
        return ["array", str(value.dtype), value.shape, digest]
    if isinstance(value, re.Pattern):  # whose text is cut off
        return ["pattern", said(value.pattern), value.flags]
    return repr(value)


def _function(value: FunctionType, around: tuple[FunctionType, ...] = ()) -> Any:
    """A function's name and what it was made with; what it does is in the modules' code.

    Args:
        around: the functions that hold it; one of those is not looked into again.
    """
    name = f"{value.__module__}.{value.__qualname__}"
    if value in around:
        return name
    closed = [_in_cell(cell, (*around, value)) for cell in value.__closure__ or ()]
    return [name, *(said(one) for one in (closed, value.__defaults__, value.__kwdefaults__) if one)]


def _in_cell(cell: CellType, around: tuple[FunctionType, ...]) -> Any:
    try:
        inside = cell.cell_contents
    except ValueError:  # nothing yet
        return None
    return _function(inside, around) if isinstance(inside, FunctionType) else _ADDRESS.sub("", str(said(inside)))


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
