"""Gates of interactions: which lines of a file cannot be believed, each set aside with the first reason that holds.

What a line lacks or contradicts is looked at in the order of `REASONS`, so that
every row read has one fate, and the counts add up to the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from almanac.clock import micros_of
from almanac.entity_keys import entity_key, whole
from almanac.errors import UnknownEntity
from almanac.interactions import Interactions
from almanac.partitioning import Partitioning
from almanac.ranking_declared import ANY_ITEM
from features.interactions.codes import coded

if TYPE_CHECKING:
    import pyarrow as pa

ITEM_BYTES_MAX = 256

REASONS: Mapping[str, str] = {
    "no-time": "the time is missing",
    "too-early": "from before there were any",
    "too-late": "from the future",
    "no-item": "nothing says which item",
    "unreadable-item": "the item is not text in UTF-8, has control characters, or is too long",
    "no-entity": "nothing says who",
    "bad-entity": "who it was cannot be a key: no whole number, control characters, or too long",
    "not-a-number": "quantity or price is missing, or no finite number",
    "return": "the quantity is below zero",
    "bad-quantity": "the quantity is not within what can be true",
    "free": "the price is zero or less",
    "bad-price": "the price is not within what can be true",
    "not-an-item": "no item, but postage or the like",
    "duplicate": "the same line once more",
}
"""Why a line is set aside, in the order in which it is looked at; stable words."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Believed:
    """What the gates made of a file's rows.

    Args:
        lines: the rows that passed, in the order of time: `entity`, `item`, `quantity`, `price`, `at`.
        reasons: for each row of the file its place in `REASONS`, -1 where it passed, int8.
    """

    lines: pa.Table
    reasons: NDArray[np.int8]

    @property
    def counts(self) -> dict[str, int]:
        """How many rows were set aside for each reason; sums with the lines to the rows read."""
        found = np.bincount(self.reasons[self.reasons >= 0], minlength=len(REASONS))
        return {reason: int(count) for reason, count in zip(REASONS, found, strict=True)}


def pass_gates(table: pa.Table, declared: Interactions, partitions: Partitioning, now: datetime) -> Believed:
    """Judge the rows of a file.

    Args:
        table: `entity` and `item` as they are in the file, `quantity` and `price` float64, `at` timestamps in UTC;
            all may have nulls.
        now: nothing later can have happened.
    """
    import pyarrow as pa

    entities, no_entity, bad_entity = _keys(table["entity"], lambda value: entity_of(value, partitions))
    items, no_item, unreadable = _keys(table["item"], normalised)
    at = table["at"].cast(pa.int64()).fill_null(-(2**62)).to_numpy()
    quantity, price = (np.asarray(table[name].fill_null(np.nan).to_numpy()) for name in ("quantity", "price"))
    with np.errstate(invalid="ignore"):
        held: dict[str, Flags] = {
            "no-time": table["at"].is_null().to_numpy(),
            "too-early": at < micros_of(declared.since),
            "too-late": at > micros_of(now),
            "no-item": no_item,
            "unreadable-item": unreadable,
            "no-entity": no_entity,
            "bad-entity": bad_entity,
            "not-a-number": ~(np.isfinite(quantity) & np.isfinite(price)),
            "return": quantity < 0,
            "bad-quantity": (quantity < declared.quantity[0]) | (quantity > declared.quantity[1]),
            "free": price <= 0,
            "bad-price": (price < declared.price[0]) | (price > declared.price[1]),
            "not-an-item": _among(items, {*declared.not_items, ANY_ITEM}),
        }
    reasons = np.full(table.num_rows, -1, np.int8)
    for place, name in enumerate(REASONS):
        if name in held:
            reasons[(reasons < 0) & held[name]] = place
    lines = pa.table(
        {
            "entity": entities,
            "item": items,
            "quantity": pa.array(quantity),
            "price": pa.array(price),
            "at": table["at"].combine_chunks(),
        }
    )
    passed = np.flatnonzero(reasons < 0)
    kept, again = _without_duplicates(lines.take(pa.array(passed)))
    reasons[passed[again]] = list(REASONS).index("duplicate")
    return Believed(lines=kept, reasons=reasons)


def normalised(value: Any) -> str | None:
    """The key of an item: its text in capitals with single spaces; None where it cannot be read as text.

    Nothing but spaces is the empty text.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    if _says_nothing(value):
        return ""
    value = _exact(value)
    if isinstance(value, float):
        value = whole(value)  # 85123.0 is the item that events call "85123"
    if value is None:
        return None
    text = " ".join(str(value).split()).upper()
    if not text:
        return ""
    readable = text.isprintable() and "\ufffd" not in text and len(text.encode(errors="replace")) <= ITEM_BYTES_MAX
    return text if readable else None


def entity_of(value: Any, partitions: Partitioning) -> str | None:
    """An entity's key as text; None if it can be none, empty if it says nothing."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    if _says_nothing(value):
        return ""
    try:
        key = str(entity_key("entity", partitions, _exact(value)))
    except UnknownEntity:
        return None
    return key if key.isprintable() else None


def _says_nothing(value: Any) -> bool:
    return math.isnan(value) if isinstance(value, float | Decimal) else not str(value).strip()


def _exact(value: Any) -> Any:
    """A decimal column's whole number as such: it is exact at any size."""
    return int(value) if isinstance(value, Decimal) and value == value.to_integral_value() else value


def _keys(column: pa.ChunkedArray, read: Callable[[Any], str | None]) -> tuple[pa.Array, Flags, Flags]:
    """Each value as a key, what says nothing, and what cannot be read; each distinct value is looked at once."""
    import pyarrow as pa

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())  # text may not be UTF-8, whatever the file says
    encoded = column.combine_chunks().dictionary_encode()
    found = [read(value) for value in encoded.dictionary.to_pylist()]
    codes = encoded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)
    empty = np.array([key == "" for key in found] + [True])
    unread = np.array([key is None for key in found] + [False])
    keys = pa.array([key or "" for key in found] + [""], pa.string())
    return keys.take(pa.array(codes)), empty[codes], unread[codes]


def _among(keys: pa.Array, some: set[str]) -> Flags:
    import pyarrow as pa
    import pyarrow.compute as pc

    return np.asarray(pc.is_in(keys, pa.array(sorted(some), pa.string())).to_numpy(zero_copy_only=False))


def _without_duplicates(lines: pa.Table) -> tuple[pa.Table, NDArray[np.int64]]:
    """Lines in the order of time, each once; and which rows of those given were there before."""
    import pyarrow as pa

    texts = [coded(lines[name])[0] for name in ("entity", "item")]
    codes = [lines["at"].to_numpy().astype(np.int64), *texts, *(lines[n].to_numpy() for n in ("quantity", "price"))]
    order = np.lexsort(codes[::-1])
    same = np.ones(len(order), bool)
    same[:1] = False
    for code in codes:
        same[1:] &= code[order][1:] == code[order][:-1]
    return lines.take(pa.array(order[~same])), order[same]


def described(counts: Mapping[str, int]) -> str:
    """What was set aside, for a person: `12 without …, 3 …`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count) or "nothing"
