"""A block of two: predictions that stay as they were, and those that were made anew. Pure NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from almanac.blocks import Block
from almanac.errors import BlockError
from almanac.list_blocks import AnyBlock, ListBlock
from almanac.ragged import Ragged, Wholes, picked


def places_in(block: AnyBlock, keys: NDArray[Any]) -> Wholes:
    """The row of each key in a block, int64; -1 for one that it does not have, or of the other kind.

    Args:
        keys: int64 or bytes, in any order.
    """
    if not len(block.keys) or (block.keys.dtype.kind == "S") != (keys.dtype.kind == "S"):
        return np.full(len(keys), -1, np.int64)
    at = np.minimum(np.searchsorted(block.keys, keys), len(block.keys) - 1).astype(np.int64)
    return np.where(block.keys[at] == keys, at, -1)


def merged(before: AnyBlock, rows: Wholes, made: AnyBlock) -> AnyBlock:
    """Some rows of a block, and all of another that has none of their keys, as one block.

    Args:
        rows: of `before`, ascending.

    Raises:
        BlockError: they have a key in common, differ in kind or columns, or in what they say of an item.
    """
    if isinstance(before, Block) and isinstance(made, Block):
        if tuple(before.columns) != tuple(made.columns):
            raise BlockError("two blocks with other columns cannot be one: score the partition whole")
        keys, order = _keys(before.keys[rows], made.keys)
        columns = {
            name: np.concatenate([before.columns[name][rows], made.columns[name]])[order] for name in made.columns
        }
        return Block(keys=keys, columns=columns)
    if isinstance(before, ListBlock) and isinstance(made, ListBlock):
        return _lists(before, rows, made)
    raise BlockError("a block of numbers and one of lists cannot be one: score the partition whole")


def _keys(one: NDArray[Any], other: NDArray[Any]) -> tuple[NDArray[Any], Wholes]:
    """Keys of both, ascending, and where each came from; that none comes twice the block sees to."""
    keys = np.concatenate([one, other])
    order = np.argsort(keys, kind="stable")
    return keys[order], order


def _lists(before: ListBlock, rows: Wholes, made: ListBlock) -> ListBlock:
    kept = _some(before, rows)
    keys, order = _keys(kept.keys, made.keys)
    items = np.union1d(kept.items, made.items)
    renumbered = [np.searchsorted(items, block.items) for block in (kept, made)]
    attributes = {name: _attribute(name, (kept, made), renumbered, len(items)) for name in made.attributes}
    places = np.concatenate([renumbered[0][kept.places], renumbered[1][made.places]])
    scores = np.concatenate([kept.scores, made.scores])
    ends = made.offsets[1:].astype(np.int64) + len(kept.places)
    both = Ragged(np.arange(len(places)), np.concatenate([kept.offsets.astype(np.int64), ends]))
    found = picked(both, order)[1]
    return ListBlock.of(keys, found.offsets, items, attributes, places[found.values], scores[found.values])


def _some(block: ListBlock, rows: Wholes) -> ListBlock:
    """Some rows of a block, and the items of their lists alone."""
    entries = Ragged(np.arange(len(block.places)), block.offsets.astype(np.int64))
    kept = picked(entries, rows)[1]
    at = kept.values
    return ListBlock.of(
        block.keys[rows], kept.offsets, block.items, block.attributes, block.places[at], block.scores[at]
    )


def _attribute(
    name: str, blocks: tuple[ListBlock, ListBlock], renumbered: list[Wholes], items: int
) -> NDArray[np.float32]:
    """An attribute of the items of both blocks."""
    kept, made = blocks
    if name not in kept.attributes:
        raise BlockError(f"the block before has no attribute {name}: score the partition whole")
    found = np.zeros(items, dtype=np.float32)
    found[renumbered[0]] = kept.attributes[name]
    found[renumbered[1]] = made.attributes[name]
    if not np.array_equal(found[renumbered[0]], kept.attributes[name]):
        raise BlockError(f"an item has two values of {name}: score the partition whole")
    return found
