"""Histories in bulk: the rows that the fold makes of many entities' events, all at once in NumPy.

Events of one entity come in the order of time; to each wanted one its row is made:

- what was bought: an item's state holds from one basket with it to the next, so
  that each is laid out over the rows between, and the rows are sorted once;
- tiles: of the days before an event the whole tile, of its own day what it has until then;
- events seen: the ones before, newest first.

Entities that the fold treats in its own ways (returns, more items or events than
a history holds) go through the fold itself, one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from almanac.clock import DAY_MICROSECONDS
from almanac.ragged import Ragged, Wholes, offsets_of
from features.interactions.codes import among, list_array, ragged_of, ranges, starts_of
from features.interactions.fold import TILES, Event, advance
from features.interactions.history import BOUGHT_MAX, DAYS_KEPT, HISTORY, NEVER, SEEN_MAX, bounded, hundredths

if TYPE_CHECKING:
    import pyarrow as pa

Flags = NDArray[np.bool_]


UNBOUNDED_FROM = 2.0**62
"""Where all amounts together come to more, sums are made of Python's whole numbers: slower, and never too small."""


@dataclass(frozen=True, eq=False)
class Baskets:
    """Lines in the order of entity, moment and event, as codes.

    Args:
        entities, items: keys in order; `entity` and `item` are places among them.
        entity, item, at, event: int64 (lines,); `event` is the hash of the event that the line is of.
        quantity, price: float64 (lines,).
    """

    entities: list[str]
    items: list[str]
    entity: Wholes
    item: Wholes
    at: Wholes
    event: Wholes
    quantity: NDArray[np.float64]
    price: NDArray[np.float64]

    def part(self, first: int, until: int) -> Baskets:
        """The lines of the entities `first` up to `until`."""
        a, b = np.searchsorted(self.entity, (first, until))
        held = slice(int(a), int(b))
        lines = (self.entity[held], self.item[held], self.at[held], self.event[held])
        return Baskets(self.entities, self.items, *lines, self.quantity[held], self.price[held])


def histories(baskets: Baskets, before: pa.Table | None, since: int, *, newest_only: bool = False) -> pa.Table:
    """The row of each entity at each of its moments.

    Args:
        before: rows of entities as they were before the first line: `entity` and the columns of `HISTORY`.
        since: microseconds since 1970; moments before have no row.
        newest_only: only the last moment of each entity has one.

    Returns:
        `entity`, `at` (int64) and the columns of `HISTORY`, by entity and moment.
    """
    import pyarrow as pa

    events = _Events.of(baskets)
    wanted = _wanted(events, since, newest_only)
    prior = _Prior.of(before, baskets)
    slow = _slow(baskets, events, prior)
    fast = wanted & ~slow[events.entity]
    parts = [_made(baskets, events, prior, np.flatnonzero(fast))]
    if slow.any():
        parts.append(_folded(baskets, events, before, wanted & slow[events.entity]))
    found = pa.concat_tables(parts)
    return found.sort_by([("entity", "ascending"), ("at", "ascending")]) if len(parts) > 1 else found


@dataclass(frozen=True, eq=False)
class _Events:
    """Events in the order of entity, moment and hash: int64 (events,), and where their lines begin and end."""

    entity: Wholes
    at: Wholes
    mark: Wholes
    offsets: Wholes
    first: Wholes
    """Where each entity's events begin, by the entity's place; one more at the end."""

    @classmethod
    def of(cls, baskets: Baskets) -> _Events:
        starts = starts_of(baskets.entity, baskets.at, baskets.event)
        entity = baskets.entity[starts]
        first = np.searchsorted(entity, np.arange(len(baskets.entities) + 1))
        offsets = np.append(starts, len(baskets.entity))
        return cls(entity, baskets.at[starts], baskets.event[starts], offsets, first)

    @property
    def place(self) -> Wholes:
        """Which of its entity's events each is."""
        return np.arange(len(self.entity)) - self.first[self.entity]


@dataclass(frozen=True, eq=False)
class _Prior:
    """Histories before the first line, ragged over all entities."""

    bought: Ragged
    bought_at: Wholes
    bought_counts: Wholes
    days: Ragged
    tiles: NDArray[np.int64]
    seen: Ragged
    seen_at: Wholes
    orders: Wholes
    first_at: Wholes
    floor: Wholes

    @classmethod
    def of(cls, before: pa.Table | None, baskets: Baskets) -> _Prior:
        """Rows by the entity's place; items by their place among the baskets' items, which must have all of them."""
        n = len(baskets.entities)
        if before is None or not before.num_rows:
            nothing, none = Ragged(np.empty(0, np.int64), np.zeros(n + 1, np.int64)), np.empty(0, np.int64)
            tiles = np.empty((len(TILES), 0), np.int64)
            never = np.full(n, NEVER)
            return cls(nothing, none, none, nothing, tiles, nothing, none, np.zeros(n, np.int64), never, never)
        at = {key: place for place, key in enumerate(before["entity"].to_pylist())}
        rows = among(baskets.entities, at)
        known = np.flatnonzero(rows >= 0)
        table = before.take(rows[known])
        places = {item: place for place, item in enumerate(baskets.items)}

        def spread(name: str) -> Ragged:
            found = ragged_of(table[name])
            lengths = np.zeros(n, np.int64)
            lengths[known] = found.lengths
            return Ragged(found.values, offsets_of(lengths))

        def number(name: str, empty: int) -> Wholes:
            values = np.full(n, empty, np.int64)
            values[known] = table[name].to_numpy()
            return values

        bought = spread("bought_items")
        return cls(
            Ragged(among(bought.values.tolist(), places), bought.offsets),
            spread("bought_at").values.astype(np.int64),
            spread("bought_counts").values.astype(np.int64),
            spread("days"),
            np.stack([spread(name).values for name in TILES]).astype(np.int64),
            spread("seen"),
            spread("seen_at").values.astype(np.int64),
            number("orders", 0),
            number("first_at", NEVER),
            number("seen_floor", NEVER),
        )


def _wanted(events: _Events, since: int, newest_only: bool) -> Flags:
    """The last event of each moment, of those that are to have a row."""
    n = len(events.entity)
    last = np.ones(n, bool)
    last[:-1] = events.entity[1:] != events.entity[:-1]
    if not newest_only:
        last[:-1] |= events.at[1:] != events.at[:-1]
    return np.asarray(last & (events.at >= since))


def _slow(baskets: Baskets, events: _Events, prior: _Prior) -> Flags:
    """Entities whose rows the fold makes itself."""
    n = len(baskets.entities)
    slow = np.zeros(n, bool)
    slow[baskets.entity[baskets.quantity < 0]] = True
    slow |= np.diff(events.first) + prior.seen.lengths > SEEN_MAX
    slow |= prior.floor > NEVER
    owner = np.repeat(np.arange(n), prior.bought.lengths)
    width = len(baskets.items) + 1
    pairs = np.unique(np.concatenate([baskets.entity * width + baskets.item, owner * width + prior.bought.values]))
    slow |= np.bincount(pairs // width, minlength=n) > BOUGHT_MAX
    return slow


def _made(baskets: Baskets, events: _Events, prior: _Prior, chosen: Wholes) -> pa.Table:
    """The rows of some events, in their order."""
    import pyarrow as pa

    items = pa.array(baskets.items, pa.string())
    entity, place = events.entity[chosen], events.place[chosen]
    columns: dict[str, Any] = {
        "entity": pa.array(baskets.entities, pa.string()).take(pa.array(entity)),
        "at": events.at[chosen],
        **_bought(baskets, events, prior, chosen, items),
        **_basket(baskets, events, chosen, items),
        "basket_at": events.at[chosen],
        **_tiles(baskets, events, prior, chosen),
        "orders": prior.orders[entity] + place + 1,
        "first_at": np.where(prior.first_at[entity] > NEVER, prior.first_at[entity], events.at[events.first[entity]]),
        **_seen(events, prior, chosen),
        "seen_floor": np.full(len(chosen), NEVER),
    }
    return pa.table({name: columns[name] for name in ("entity", "at", *HISTORY)}).cast(schema_of(pa.string()))


def schema_of(key: pa.DataType) -> pa.Schema:
    """Columns of histories: key, moment and `HISTORY`."""
    import pyarrow as pa

    return pa.schema([("entity", key), ("at", pa.int64()), *((n, arrow_type(k)) for n, k in HISTORY.items())])


def arrow_type(kind: str) -> pa.DataType:
    """The Arrow type of a kind of column."""
    import pyarrow as pa

    plain = {"int64": pa.int64(), "float32": pa.float32(), "string": pa.string()}
    return plain[kind] if kind in plain else pa.list_(plain[kind.removesuffix("s")])


def _bought(baskets: Baskets, events: _Events, prior: _Prior, chosen: Wholes, items: pa.Array) -> dict[str, Any]:
    """Each item's state is laid out over the rows from one basket that has it to the next."""
    import pyarrow as pa

    n = len(events.entity)
    of_event = np.repeat(np.arange(n), np.diff(events.offsets))
    width = len(baskets.items) + 1
    held = np.unique(of_event * width + baskets.item)
    event, item = held // width, held % width
    before = np.repeat(np.arange(len(baskets.entities)), prior.bought.lengths)
    entity = np.concatenate([before, events.entity[event]])
    every = np.concatenate([prior.bought.values, item])
    at = np.concatenate([prior.bought_at, events.at[event]])
    count = np.concatenate([prior.bought_counts, np.ones(len(event), np.int64)])
    start = np.concatenate([np.full(len(before), -1), event])
    order = np.lexsort((start, every, entity))
    entity, every, at, count, start = (column[order] for column in (entity, every, at, count, start))
    runs = starts_of(entity, every) if len(entity) else np.empty(0, np.int64)
    running = np.cumsum(count)
    count = running - np.repeat((running - count)[runs], np.diff(np.append(runs, len(entity)))[: len(runs)])
    last = np.append(runs[1:], len(entity)) - 1 if len(runs) else runs
    end = np.append(start[1:], 0)[: len(entity)]
    end[last] = events.first[entity[last] + 1]
    rows_before = np.searchsorted(chosen, np.arange(n + 1))
    first = rows_before[np.where(start < 0, events.first[entity], start)]
    lengths = rows_before[end] - first
    row, state = ranges(first, lengths), np.repeat(np.arange(len(entity)), lengths)
    order = np.lexsort((every[state], -at[state], row))
    state = state[order]
    offsets = offsets_of(np.bincount(row, minlength=len(chosen)))
    return {
        "bought_items": list_array(items.take(pa.array(every[state])), offsets),
        "bought_at": list_array(pa.array(at[state]), offsets),
        "bought_counts": list_array(pa.array(count[state]), offsets),
    }


def _basket(baskets: Baskets, events: _Events, chosen: Wholes, items: pa.Array) -> dict[str, Any]:
    """The distinct items of all events of a row's moment."""
    import pyarrow as pa

    n = len(events.entity)
    moments = np.append(starts_of(events.entity, events.at), n) if n else np.zeros(1, np.int64)
    moment = np.searchsorted(moments, chosen, side="right") - 1
    first, until = events.offsets[moments[moment]], events.offsets[moments[moment + 1]]
    lines = ranges(first, until - first)
    width = len(baskets.items) + 1
    held = np.unique(np.repeat(np.arange(len(chosen)), until - first) * width + baskets.item[lines])
    offsets = offsets_of(np.bincount(held // width, minlength=len(chosen)))
    return {"basket_items": list_array(items.take(pa.array(held % width)), offsets)}


def _tiles(baskets: Baskets, events: _Events, prior: _Prior, chosen: Wholes) -> dict[str, Any]:
    """Of the days before a row's the whole tiles, of its own day what it has until then."""
    import pyarrow as pa

    units = bounded(np.rint(baskets.quantity))
    spend = hundredths(baskets.quantity, baskets.price)
    per_line: Any = np.stack([np.zeros(len(units), np.int64), np.ones(len(units), np.int64), units, spend])
    tiles_before: Any = prior.tiles
    if sum(float(np.abs(one).sum(dtype=np.float64)) for one in (per_line, tiles_before)) > UNBOUNDED_FROM:
        per_line, tiles_before = per_line.astype(object), tiles_before.astype(object)  # whole numbers of any size
    nothing = np.zeros((len(TILES), 1), per_line.dtype)
    running = np.concatenate([nothing, np.cumsum(per_line, axis=1)], axis=1)
    values = running[:, events.offsets[1:]] - running[:, events.offsets[:-1]]
    values[0] = 1
    own = events.at // DAY_MICROSECONDS
    owner = np.repeat(np.arange(len(baskets.entities)), prior.days.lengths)
    low = min(prior.days.values.min(initial=0), own.min(initial=0))
    width = max(prior.days.values.max(initial=0), own.max(initial=0)) - low + DAYS_KEPT + 2

    def key(entity: Wholes, day: Wholes) -> Wholes:
        return np.asarray(entity * width + (day - low + DAYS_KEPT))

    keys = np.concatenate([key(owner, prior.days.values), key(events.entity, own)])
    # What was before comes first of its day: a stable sort keeps events in their order.
    order = np.argsort(keys, kind="stable")
    sums = np.cumsum(np.concatenate([tiles_before, values], axis=1)[:, order], axis=1)
    runs = starts_of(keys[order]) if len(keys) else np.empty(0, np.int64)
    ends = np.append(runs[1:], len(keys)) - 1 if len(runs) else runs
    base = np.where(runs > 0, sums[:, runs - 1], 0)
    whole, tile_keys = sums[:, ends] - base, keys[order][runs]
    place = np.empty(len(keys), np.int64)
    place[order] = np.arange(len(keys))
    here = place[len(owner) + chosen]
    tile = np.searchsorted(tile_keys, key(events.entity[chosen], own[chosen]))
    oldest = np.searchsorted(tile_keys, key(events.entity[chosen], own[chosen] - DAYS_KEPT + 1))
    lengths = tile - oldest + 1
    offsets, at = offsets_of(lengths), ranges(oldest, lengths)
    found = whole[:, at]
    found[:, offsets[1:] - 1] = sums[:, here] - base[:, tile]
    days = tile_keys[at] % width + low - DAYS_KEPT
    lists = {"days": days, **dict(zip(TILES, bounded(found), strict=True))}
    return {name: list_array(pa.array(values), offsets) for name, values in lists.items()}


def _seen(events: _Events, prior: _Prior, chosen: Wholes) -> dict[str, Any]:
    """A row's events and those before, newest first."""
    import pyarrow as pa

    entity = events.entity[chosen]
    own = events.place[chosen] + 1
    earlier = prior.seen.lengths[entity]
    offsets = offsets_of(own + earlier)
    newest = ranges(offsets[:-1], own)
    oldest = ranges(offsets[:-1] + own, earlier)
    back = np.repeat(chosen, own) - (newest - np.repeat(offsets[:-1], own))
    held = ranges(prior.seen.offsets[entity], earlier)
    found = {}
    for name, mine, theirs in (("seen", events.mark, prior.seen.values), ("seen_at", events.at, prior.seen_at)):
        values = np.empty(int(offsets[-1]), np.int64)
        values[newest], values[oldest] = mine[back], theirs[held]
        found[name] = list_array(pa.array(values), offsets)
    return found


def _folded(baskets: Baskets, events: _Events, before: pa.Table | None, wanted: Flags) -> pa.Table:
    """The rows of entities that go through the fold, event by event."""
    import pyarrow as pa
    import pyarrow.compute as pc

    known: dict[str, Any] = {}
    slow = np.unique(events.entity[wanted]).tolist()
    if before is not None:
        names = pa.array([baskets.entities[place] for place in slow], pa.string())
        rows = before.filter(pc.is_in(before["entity"], names)).to_pylist()
        known = {row["entity"]: {name: row[name] for name in HISTORY} for row in rows}
    found: list[dict[str, Any]] = []
    for entity in slow:
        key = baskets.entities[entity]
        row = known.get(key)
        for number in range(int(events.first[entity]), int(events.first[entity + 1])):
            lines = range(int(events.offsets[number]), int(events.offsets[number + 1]))
            taken = tuple(
                (baskets.items[baskets.item[n]], float(baskets.quantity[n]), float(baskets.price[n])) for n in lines
            )
            at, mark = int(events.at[number]), int(events.mark[number])
            advanced = advance(row, Event(entity=key, at=at, lines=taken, mark=mark))
            row = advanced.row
            if wanted[number]:
                found.append({"entity": key, "at": advanced.at, **row})
    return pa.Table.from_pylist(found, schema=schema_of(pa.string()))
