"""The fold: one more event in an entity's history. Pure; batch makes the same rows in bulk (`interactions_bulk`).

An event is a basket: lines with an item, a quantity and a price at one moment. A
negative quantity is a return: it takes one basket away from the item's count,
and units and spend from its day; of an item that the history does not have it
changes nothing. Folding an event in again changes nothing, and events may come in
any order, as long as none is older than what the history still knows and no
return comes before what it returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from almanac.clock import DAY_MICROSECONDS
from features.interactions.history import (
    BOUGHT_MAX,
    DAY_SUM_MAX,
    DAYS_KEPT,
    NEVER,
    SEEN_MAX,
    empty_history,
    event_hashes,
    key_hashes,
)

TILES = ("day_orders", "day_lines", "day_units", "day_spend")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One basket of one entity.

    Args:
        entity: its key.
        at: microseconds since 1970.
        lines: item, quantity and price of each.
        mark: its hash, where that is known.
    """

    entity: str
    at: int
    lines: tuple[tuple[str, float, float], ...]
    mark: int | None = None

    @property
    def hash(self) -> int:
        """64 bits that say which event it is, by what it says."""
        return hashes([self])[0] if self.mark is None else self.mark


def hashes(events: Sequence[Event]) -> list[int]:
    """The hash of each event, made of all at once."""
    lines = [line for event in events for line in event.lines]
    amounts = np.array([[line[1], line[2]] for line in lines], np.float64).T.reshape(2, -1)
    offsets = np.cumsum([0, *(len(event.lines) for event in events)], dtype=np.int64)
    moments = np.array([event.at for event in events], np.int64)
    entities, items = key_hashes([event.entity for event in events]), key_hashes([line[0] for line in lines])
    found: list[int] = event_hashes(entities, moments, items, amounts, offsets).tolist()
    return found


@dataclass(frozen=True, kw_only=True)
class Advanced:
    """A history with an event folded in.

    Args:
        row: the columns of `HISTORY`.
        at: moment of the newest event in it: the row's event time.
        folded: whether the event changed it; not if it was known, or older than what the history knows.
        unmatched: returns of items that the history does not have.
        beyond: whether a sum of a day would be greater than `DAY_SUM_MAX`; the row has that instead.
    """

    row: dict[str, Any]
    at: int
    folded: bool
    unmatched: int = 0
    beyond: bool = False


def advance(row: Mapping[str, Any] | None, event: Event) -> Advanced:
    """Fold an event into a history.

    Args:
        row: the columns of `HISTORY`, lists as sequences; None of an entity that has none yet.
    """
    old = dict(empty_history() if row is None else row)
    newest = max(old["seen_at"], default=NEVER)
    mark = event.hash
    if event.at <= old["seen_floor"] or mark in set(old["seen"]):
        return Advanced(row=old, at=int(newest), folded=False)
    bought = {
        item: (int(at), int(count))
        for item, at, count in zip(old["bought_items"], old["bought_at"], old["bought_counts"], strict=True)
    }
    taken = {line[0] for line in event.lines if line[1] > 0}
    for item in taken:
        at, count = bought.get(item, (event.at, 0))
        bought[item] = (max(at, event.at), count + 1)
    foreign = {line[0] for line in event.lines if line[1] < 0} - bought.keys()
    for item in {line[0] for line in event.lines if line[1] < 0} - foreign:
        if bought[item][1] == 1:
            del bought[item]
        else:
            bought[item] = (bought[item][0], bought[item][1] - 1)
    new = {**old, **_bought(bought), **_basket(old, event.at, taken)}
    counted = [line for line in event.lines if line[1] > 0 or line[0] not in foreign]
    tiles, beyond = _tiles(old, event.at, counted, max(int(newest), event.at))
    new |= tiles
    new |= _seen(old, event.at, mark)
    if taken:
        new["orders"] = int(old["orders"]) + 1
        new["first_at"] = event.at if old["first_at"] <= NEVER else min(int(old["first_at"]), event.at)
    return Advanced(row=new, at=max(int(newest), event.at), folded=True, unmatched=len(foreign), beyond=beyond)


def _bought(bought: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """The newest items, of one moment by key."""
    kept = sorted(bought.items(), key=lambda pair: (-pair[1][0], pair[0]))[:BOUGHT_MAX]
    return {
        "bought_items": [item for item, _ in kept],
        "bought_at": [at for _, (at, _) in kept],
        "bought_counts": [count for _, (_, count) in kept],
    }


def _basket(old: Mapping[str, Any], at: int, taken: set[str]) -> dict[str, Any]:
    if not taken or at < old["basket_at"]:
        return {}
    items = taken if at > old["basket_at"] else taken | set(old["basket_items"])
    return {"basket_items": sorted(items), "basket_at": at}


def _tiles(
    old: Mapping[str, Any], at: int, lines: Sequence[tuple[str, float, float]], newest: int
) -> tuple[dict[str, Any], bool]:
    """The days' tiles with some lines of a moment, without those that no window needs; whether a sum was cut."""
    beyond = False
    tiles = {int(day): [int(old[name][place]) for name in TILES] for place, day in enumerate(old["days"])}
    if lines:
        taken = sum(line[1] > 0 for line in lines)
        units = sum(round(line[1]) for line in lines)  # to the nearest even, as `hundredths`
        spend = sum(round(line[1] * line[2] * 100) for line in lines)
        tile = tiles.setdefault(at // DAY_MICROSECONDS, [0, 0, 0, 0])
        for place, more in enumerate((int(taken > 0), taken, units, spend)):
            beyond |= abs(tile[place] + more) > DAY_SUM_MAX
            tile[place] = max(-DAY_SUM_MAX, min(DAY_SUM_MAX, tile[place] + more))
    kept = sorted(day for day in tiles if day > newest // DAY_MICROSECONDS - DAYS_KEPT)
    return {"days": kept, **{name: [tiles[day][place] for day in kept] for place, name in enumerate(TILES)}}, beyond


def _seen(old: Mapping[str, Any], at: int, mark: int) -> dict[str, Any]:
    """The newest events, and where knowledge of older ones ends."""
    known: Sequence[tuple[int, int]] = sorted(
        [(at, mark), *((int(a), int(m)) for a, m in zip(old["seen_at"], old["seen"], strict=True))], reverse=True
    )
    kept, gone = known[:SEEN_MAX], known[SEEN_MAX:]
    floor = max([int(old["seen_floor"]), *(a for a, _ in gone)])
    return {"seen": [m for _, m in kept], "seen_at": [a for a, _ in kept], "seen_floor": floor}
