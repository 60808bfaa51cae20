"""A simulated crowd: entities with tastes take items with seasons, new ones of both come and some items go.

A pure function of seed, size and the day it began, day by day, so that any day
can be made again without the others. What a model may find in it:

- an entity has two styles and a dozen staples among their items, which it takes again and again;
- items of one style are taken together, an item and its companion most of all;
- styles have their seasons; new items and entities come all the time, and some items leave the range for good.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from almanac.clock import DAY, DAY_MICROSECONDS, EPOCH, MICROSECOND, format_time, micros_of
from almanac.errors import SourceError
from almanac.interactions import Interactions, Simulated
from almanac.settings import Settings
from features.files import locked, replacing

if TYPE_CHECKING:
    import pyarrow as pa

BEGINNINGS_FILE = "simulated.json"
STYLE_ITEMS = 20
"""Items of a style."""
STAPLES = 12
BASKET_LINES = 5.0
"""Lines of a basket, on average."""
BASKET_LINES_MAX = 30
AGAIN, COMPANION, OWN_STYLE = 0.40, 0.20, 0.28
"""How a line is chosen: a staple, the companion of the line before, an item of an own style; the rest at large."""
EARLY_ENTITIES, EARLY_ITEMS, LEAVING_ITEMS = 0.6, 0.8, 0.1
QUIET_DAYS_MAX = 60
"""Days back that are looked at for the last line."""
COLOURS = ("RED", "BLUE", "IVORY", "GREEN", "PINK", "BLACK", "WHITE", "SILVER", "AMBER", "SLATE")
THINGS = (
    "LANTERN",
    "MUG",
    "CANDLE",
    "BUNTING",
    "BASKET",
    "CUSHION",
    "CLOCK",
    "FRAME",
    "TRAY",
    "GARLAND",
    "JAR",
    "BELL",
)

Wholes = NDArray[np.int64]
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Crowd:
    """A `LineSource` of simulated interactions.

    Args:
        size: how many entities and items, and over which time.
        seed: of all that is random.
        begins: its first day.
    """

    size: Simulated
    seed: int
    begins: date

    @classmethod
    def settled(cls, name: str, declared: Interactions, settings: Settings, now: datetime) -> Crowd:
        """The crowd of a pipeline: its first day is decided at its first use, and the same ever after."""
        path = settings.features_dir / BEGINNINGS_FILE
        with locked(path.with_suffix(".lock")):
            known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
            if name not in known:
                known[name] = str((now - declared.simulated.history).date())
                with replacing(path) as temporary:
                    temporary.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        return cls(declared.simulated, settings.source_seed, date.fromisoformat(known[name]))

    @property
    def earliest(self) -> datetime:
        """The beginning of its first day."""
        return datetime(self.begins.year, self.begins.month, self.begins.day, tzinfo=UTC)

    @property
    def clock_shift(self) -> timedelta:
        """None: it lives now."""
        return timedelta(0)

    @property
    def identity(self) -> str:
        """Seed, size and beginning."""
        return f"crowd 1 seed={self.seed} begins={self.begins} {self.size!r}"

    @property
    def rows(self) -> None:
        """Nothing is read."""
        return

    @property
    def set_aside(self) -> Mapping[str, int]:
        """Every line can be believed."""
        return {}

    def kept_aside(self) -> None:
        """There are no such rows."""
        return

    def describe(self) -> str:
        """One line for a person."""
        return (
            f"a simulated crowd since {self.begins}, seed {self.seed}: {self.size.entities:,} entities and "
            f"{self.size.items:,} items"
        )

    def latest(self, now: datetime) -> datetime:
        """The moment of the last line at or before `now`; see `LineSource.latest`."""
        import pyarrow.compute as pc

        start = max(self.earliest, _midnight(now))
        end = now + MICROSECOND
        for _ in range(QUIET_DAYS_MAX):
            if end <= self.earliest:
                break
            found = self.lines(start, end)
            if found.num_rows:
                newest: datetime = pc.max(found["at"]).as_py().astimezone(UTC)
                return newest
            end, start = start, start - DAY
        raise SourceError(
            f"{self.describe()} has nothing at or before {format_time(now)}: it begins on {self.begins}; "
            "ask for a later time"
        )

    def lines(self, start: datetime, end: datetime) -> pa.Table:
        """The lines of a time; see `LineSource.lines`."""
        import pyarrow as pa

        days = []
        day = _midnight(max(start, self.earliest))
        while day < end:
            days.append(self._day((day - EPOCH) // DAY))
            day += DAY
        entity, item, quantity, at = (
            np.concatenate(columns) if columns else np.empty(0, np.int64)
            for columns in ([each[place] for each in days] for place in range(4))
        )
        first, until = (int(np.searchsorted(at, micros_of(moment))) for moment in (start, end))
        entity, item, quantity, at = (column[first:until] for column in (entity, item, quantity, at))
        names = pa.array(self._items.names, pa.string())
        codes, place = np.unique(entity, return_inverse=True)
        keys = pa.array([f"c{code:08d}" for code in codes.tolist()], pa.string())
        return pa.table(
            {
                "entity": keys.take(pa.array(place)),
                "item": names.take(pa.array(item)),
                "quantity": pa.array(quantity.astype(np.float64)),
                "price": pa.array(self._items.prices[item]),
                "at": pa.array(at).view(pa.timestamp("us", tz="UTC")),
            }
        )

    @cached_property
    def _items(self) -> _Items:
        return _Items.made(self.size, self.seed, self._first_day)

    @cached_property
    def _people(self) -> _People:
        return _People.made(self.size, self.seed, self._first_day, len(self._items.popular))

    @property
    def _first_day(self) -> int:
        return (self.earliest - EPOCH) // DAY

    def _day(self, day: int) -> tuple[Wholes, Wholes, Wholes, Wholes]:
        """Entity, item, quantity and moment of each line of a day, in the order of time."""
        random = np.random.default_rng([self.seed, day])
        people, items = self._people, self._items
        weekly = 1.25 if day % 7 in (1, 2) else 0.95
        who = np.flatnonzero((random.random(len(people.rate)) < people.rate * weekly) & (people.since <= day))
        moments = day * DAY_MICROSECONDS + random.integers(28_800_000_000, 72_000_000_000, len(who))
        order = np.argsort(moments, kind="stable")
        who, moments = who[order], moments[order]
        sizes = np.minimum(random.poisson(BASKET_LINES - 1, len(who)) + 1, BASKET_LINES_MAX)
        owner = np.repeat(np.arange(len(who)), sizes)
        item = self._chosen(random, who[owner], day)
        again = np.zeros(len(owner), bool)
        again[1:] = (owner[1:] == owner[:-1]) & (random.random(max(len(owner) - 1, 0)) < COMPANION)
        item[1:][again[1:]] = items.companions[item[:-1][again[1:]]]
        quantity = 1 + random.geometric(0.5, len(owner))
        there = (items.since[item] <= day) & (items.until[item] > day)
        pairs, kept = np.unique((owner * len(items.prices) + item)[there], return_index=True)
        at = np.flatnonzero(there)[np.sort(kept)] if len(pairs) else np.empty(0, np.int64)
        return who[owner[at]], item[at], quantity[at], moments[owner[at]]

    def _chosen(self, random: np.random.Generator, who: Wholes, day: int) -> Wholes:
        """An item for each line: a staple of its entity, one of its styles, or one of the season's."""
        people, items = self._people, self._items
        way, luck = random.random(len(who)), random.random(len(who))
        staple = people.staple(who, random.integers(0, STAPLES, len(who)), items)
        season = 1 + 0.8 * np.sin(2 * np.pi * (day / 365.25 + items.phases))
        styles = np.searchsorted(np.cumsum(season / season.sum()), random.random(len(who))).clip(max=len(season) - 1)
        own = people.styles[who, random.integers(0, 2, len(who))]
        by_style = items.of_style(np.where(way < AGAIN + OWN_STYLE, own, styles), luck)
        return np.where(way < AGAIN, staple, by_style)


@dataclass(frozen=True, eq=False)
class _Items:
    """What is sold: names, prices, days from and until which, companions; items of a style by popularity."""

    names: list[str]
    prices: Reals
    since: Wholes
    until: Wholes
    companions: Wholes
    phases: Reals
    popular: Wholes
    """(styles, STYLE_ITEMS): items of each style, the most popular first."""

    @classmethod
    def made(cls, size: Simulated, seed: int, first: int) -> _Items:
        random = np.random.default_rng([seed, 1])
        count, days = size.items, size.history.days
        names = [f"{COLOURS[n % len(COLOURS)]} {THINGS[n // len(COLOURS) % len(THINGS)]} {n:06d}" for n in range(count)]
        since = np.where(random.random(count) < EARLY_ITEMS, first, first + random.integers(0, days, count))
        leaves = random.random(count) < LEAVING_ITEMS
        until = np.where(leaves, since + random.integers(days // 4 + 1, days + 2, count), 2**31)
        styles = max(count // STYLE_ITEMS, 1)
        popular = random.permutation(count)[: styles * STYLE_ITEMS].reshape(styles, -1)
        companions = np.arange(count)
        companions[popular] = np.roll(popular, 1, axis=1)
        prices = np.round(np.exp(random.normal(1.0, 0.7, count)), 2).clip(0.1)
        return cls(names, prices, since, until, companions, random.random(styles), popular)

    def of_style(self, styles: Wholes, luck: Reals) -> Wholes:
        """An item of each style: the first of it most often."""
        return np.asarray(self.popular[styles, (luck**2 * self.popular.shape[1]).astype(np.int64)])


@dataclass(frozen=True, eq=False)
class _People:
    """Who comes: how often a day, from which day on, and with which styles."""

    rate: Reals
    since: Wholes
    styles: Wholes
    seed: int

    @classmethod
    def made(cls, size: Simulated, seed: int, first: int, styles: int) -> _People:
        random = np.random.default_rng([seed, 2])
        count, days = size.entities, size.history.days
        early = random.random(count) < EARLY_ENTITIES
        since = np.where(early, first, first + random.integers(0, days, count))
        eager = np.exp(random.normal(0, 0.8, count))
        present = np.where(early, days, days - (since - first)).clip(1)
        wanted = size.lines_per_entity * count / BASKET_LINES
        rate = np.minimum(eager * wanted / (eager * present).sum(), 0.9)
        return cls(rate, since, random.integers(0, styles, (count, 2)), seed)

    def staple(self, who: Wholes, slots: Wholes, items: _Items) -> Wholes:
        """One of the staples of each: always the same items for the same slots."""
        mixed = (who * 1_000_003 + slots * 7_919 + self.seed).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        luck = (mixed >> np.uint64(11)).astype(np.float64) / 2**53
        return items.of_style(self.styles[who, slots % 2], luck)


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)
