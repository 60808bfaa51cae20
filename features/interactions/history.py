"""Features of interactions: the views' columns, and what an entity's history says at a moment. NumPy alone.

Times are whole microseconds since 1970 in UTC, days whole days since 1970, money
whole hundredths, so that no sum depends on the order in which it is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almanac.clock import DAY_MICROSECONDS
from almanac.ragged import Ragged

HISTORY = {
    "bought_items": "strings",
    "bought_at": "int64s",
    "bought_counts": "int64s",
    "basket_items": "strings",
    "basket_at": "int64",
    "days": "int64s",
    "day_orders": "int64s",
    "day_lines": "int64s",
    "day_units": "int64s",
    "day_spend": "int64s",
    "orders": "int64",
    "first_at": "int64",
    "seen": "int64s",
    "seen_at": "int64s",
    "seen_floor": "int64",
}
"""Columns of an entity's history, with what they hold.

`bought_items` are distinct, newest first (of one moment by key), each with the moment it was last taken and how many
baskets held it; `basket_items` those of the newest basket. A day with interactions has a tile: baskets, lines, units,
hundredths spent. `orders` and `first_at` are of all time. `seen` has hashes of the newest events that are folded in,
with their moments; events up to `seen_floor` are taken as folded in."""

_HISTORY_LISTS = tuple(name for name, kind in HISTORY.items() if kind.endswith("s"))

STATS = {
    "sold_7d": "float32",
    "sold_30d": "float32",
    "sold_90d": "float32",
    "buyers_30d": "float32",
    "price": "float32",
    "days_on_sale": "float32",
    "days_since_sold": "float32",
    "available": "float32",
}
"""Columns of an item's numbers: baskets that held it, who took it, the price last paid, 1 if it is in the range."""

TOGETHER = {"together_items": "strings", "together_weights": "float32s"}
"""Columns of the items that go together with one, closest first."""

WINDOWS_DAYS = (7, 30, 90)
BOUGHT_MAX = 100
"""Items of an entity's history."""
DAYS_KEPT = max(WINDOWS_DAYS)
"""Days of which an entity's history has tiles, that of its newest event included."""
SEEN_MAX = 64
"""Events that a history knows by their hash."""
TOGETHER_MAX = 20
"""Items that go together with one."""
POPULAR_MAX = 100
"""Items that are popular."""
NEVER = -(2**62)
"""In place of a moment that there is not."""

WINDOWS = (
    *(f"{what}_{days}d" for days in WINDOWS_DAYS for what in ("orders", "lines", "units", "spend")),
    "days_since_last",
    "days_since_first",
    "orders_ever",
    "items_known",
    "basket_size",
    "price_mean",
)
"""What `windows_at` gives: columns of an entity at a moment, which models take beside its lists."""

Wholes = NDArray[np.int64]
Hashes = NDArray[np.uint64]
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def windows_at(
    scalars: Mapping[str, Wholes], lists: Mapping[str, Ragged], moments: Wholes
) -> dict[str, NDArray[np.float32]]:
    """The columns `WINDOWS` of n entities, each at its own moment; the same to the bit whoever asks.

    Args:
        scalars: `basket_at`, `first_at`, `orders`, int64 (n,).
        lists: `days`, the tiles beside it, `bought_items` (of which only the lengths count) and `basket_items`.
        moments: microseconds since 1970, int64 (n,); nothing of the rows is later.

    Returns:
        float32 (n,) each. A window of w days has the moment's own day and the w - 1 before it. Spend and prices
        are in whole money, not hundredths. What is not known is -1.
    """
    moments = np.asarray(moments, np.int64)
    days = lists["days"]
    age = np.repeat(moments // DAY_MICROSECONDS, days.lengths) - days.values.astype(np.int64)
    found: dict[str, NDArray[np.float32]] = {}
    sums: dict[str, Wholes] = {}
    for window in WINDOWS_DAYS:
        inside = (age >= 0) & (age < window)
        for what in ("orders", "lines", "units", "spend"):
            tiles = np.where(inside, lists[f"day_{what}"].values.astype(np.int64), 0)
            total = _sums(tiles, days.offsets)
            sums[f"{what}_{window}d"] = total
            found[f"{what}_{window}d"] = (total / 100 if what == "spend" else total).astype(np.float32)
    for name, column in (("days_since_last", "basket_at"), ("days_since_first", "first_at")):
        since = np.asarray(scalars[column], np.int64)
        found[name] = np.where(since > NEVER, (moments - since) / DAY_MICROSECONDS, -1.0).astype(np.float32)
    found["orders_ever"] = np.asarray(scalars["orders"]).astype(np.float32)
    found["items_known"] = lists["bought_items"].lengths.astype(np.float32)
    found["basket_size"] = lists["basket_items"].lengths.astype(np.float32)
    units, spend = sums[f"units_{DAYS_KEPT}d"], sums[f"spend_{DAYS_KEPT}d"]
    mean = spend / (100 * np.maximum(units, 1))
    found["price_mean"] = np.where((units > 0) & (spend > 0), mean, -1.0).astype(np.float32)
    return found


def _sums(values: Wholes, offsets: Wholes) -> Wholes:
    """The sum of each list; of an empty one 0."""
    running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    return np.asarray(running[offsets[1:]] - running[offsets[:-1]])


DAY_SUM_MAX = (2**63 - 1) // (DAYS_KEPT + 1)
"""The greatest sum, up or down, that a day's tile says: sums over all days that are kept still fit into 64 bits."""


def bounded(sums: Any) -> Wholes:
    """Sums of a day as its tile says them; whole numbers of any size."""
    return np.asarray(np.clip(sums, -DAY_SUM_MAX, DAY_SUM_MAX)).astype(np.int64)


def hundredths(quantities: NDArray[np.float64], prices: NDArray[np.float64]) -> Wholes:
    """What lines cost, in whole hundredths."""
    return bounded(np.rint(np.asarray(quantities, np.float64) * prices * 100))


def key_hashes(keys: Sequence[str]) -> Hashes:
    """64 bits for each key."""
    data = b"".join(blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(data, "<u8").astype(np.uint64)


def event_hashes(
    entities: Hashes, moments: Wholes, items: Hashes, amounts: NDArray[np.float64], offsets: Wholes
) -> Wholes:
    """64 bits for each event, by what it says: whose it is, when, and its lines in any order.

    Args:
        entities, moments: of n events.
        items: hash of the item of each line.
        amounts: float64 (2, lines): quantities and prices.
        offsets: int64 (n + 1,): the lines of event i are those from `offsets[i]` up to `offsets[i + 1]`.
    """
    with np.errstate(over="ignore"):
        quantity, price = (np.ascontiguousarray(row, np.float64).view(np.uint64) for row in amounts)
        lines = _mixed(_mixed(_mixed(items) ^ quantity) ^ price)
        running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(lines, dtype=np.uint64)])
        baskets = running[offsets[1:]] - running[offsets[:-1]]
        moment = np.asarray(moments, np.int64).view(np.uint64)
        return np.asarray(_mixed(_mixed(_mixed(entities) ^ moment) ^ baskets)).view(np.int64)


def _mixed(bits: Hashes) -> Hashes:
    """A bijection that spreads every bit over all of them."""
    bits = bits + _MIX[0]
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX[1]
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX[2]
    return np.asarray(bits ^ (bits >> np.uint64(31)))


def empty_history() -> dict[str, Any]:
    """The columns of an entity of which nothing is known."""
    found: dict[str, Any] = {name: [] for name in _HISTORY_LISTS}
    return {**found, "basket_at": NEVER, "orders": 0, "first_at": NEVER, "seen_floor": NEVER}
