"""Rows of a child table as the blocks that they were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from almanac.blocks import Block, block_hash, encode
from almanac.errors import BlockError
from serving_cache.postgres_staging import quoted


def packed(cursor: Any, child: str, columns: tuple[str, ...], hashes: dict[int, str]) -> Iterator[tuple[str, bytes]]:
    """Blocks of a child's partitions, packed from its rows, each proved against its hash.

    Args:
        columns: the entity's, then the outputs; hashes: partition to hash.

    Raises:
        BlockError: the child is gone, or its rows are not those that the hash speaks of.
    """
    cursor.execute("SELECT to_regclass($1)::text", (quoted(child),))
    if cursor.fetchone()[0] is None:
        raise BlockError(f"{child} was dropped by retention: roll forward, or run the pipeline again")
    names = ", ".join(quoted(name) for name in ("partition", *columns))
    entity = quoted(columns[0])
    cursor.execute(
        f"SELECT {names} FROM {quoted(child)} WHERE partition = ANY($1::int[]) ORDER BY partition, {entity}",  # noqa: S608
        (sorted(hashes),),
    )
    table = cursor.fetch_arrow_table()
    owners = table.column("partition").to_numpy()
    keys = table.column(columns[0])
    values = {name: table.column(name).to_numpy().astype(np.float32, copy=False) for name in columns[1:]}
    for partition, digest in hashes.items():
        start, end = np.searchsorted(owners, [partition, partition + 1])
        data = encode(
            Block(keys=_keys(keys[start:end]), columns={name: column[start:end] for name, column in values.items()})
        )
        if block_hash(data) != digest:
            raise BlockError(
                f"rows of partition {partition} in {child} are not those that were published (block {digest}): "
                "somebody changed them; run the pipeline again"
            )
        yield digest, data


def _keys(column: Any) -> np.ndarray[Any, Any]:
    import pyarrow as pa

    if pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy(), dtype=np.int64)
    return np.array([text.encode() for text in column.to_pylist()] or [], dtype=np.bytes_)
