"""Moments of `shop`: customers who buy, return and come for the first time, and what else comes meanwhile, late.

At a moment all three ways speak as of one time where that is the time of the customer's newest basket and of the newest
line of all: the stream speaks as of the basket, a batch run as of the newest line before its cutoff.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from almanac.clock import format_time
from almanac.interactions import Interactions, Simulated
from almanac.pipeline import Pipeline
from streaming.publish import Outgoing

BACK = (timedelta(hours=1), timedelta(hours=66))
"""How long ago moments are: within the days that features of items may be used online."""
LATE = timedelta(days=3)
"""How much older than the round before it a late event is, at most."""
CUSTOMERS_PER_ROUND, ROUNDS_MAX = 1_000, 16
NEW, TWICE, RETURNING = 0.1, 0.05, 0.1
"""Shares of a round's customers: who come for the first time, who buy twice at the moment, who may return things."""
NAMES = ("Zoë Müller {}", "O'Neil {}", "客户 {}", "anna+{}@example.org", "{}")
LINES_MAX = 5
Line = tuple[str, float, float]


def quick(declared: Pipeline, customers: int) -> Pipeline:
    """The declaration with a crowd that so many are drawn from, and a model that is trained in seconds."""
    assert isinstance(declared.source, Interactions)
    return replace(
        declared,
        source=replace(declared.source, simulated=Simulated(entities=crowd(customers))),
        training=replace(declared.training, window=timedelta(days=40), rows_max=20_000, trees=40),
    )


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One moment: who buys, and what came before it, late."""

    at: datetime
    late: Sequence[Outgoing]
    events: Sequence[Outgoing]
    customers: Sequence[str]

    @property
    def cutoff(self) -> datetime:
        """The batch run's."""
        return self.at

    @property
    def before(self) -> datetime:
        """A moment earlier, so that features know nothing of it."""
        return self.at - timedelta(microseconds=1)

    @property
    def moments(self) -> Mapping[str, datetime]:
        """The same for all."""
        return dict.fromkeys(self.customers, self.at)


def trained_at(now: datetime) -> datetime:
    """Before all moments."""
    return now - BACK[1] - timedelta(hours=2)


def rounds(items: Sequence[str], customers: int, seed: int, now: datetime) -> list[Moment]:
    """Moments, oldest first, with so many customers together, each customer and moment once.

    Args:
        items: of the range.
    """
    dice = random.Random(seed)
    count = min(max(2, math.ceil(customers / CUSTOMERS_PER_ROUND)), ROUNDS_MAX)
    times = sorted(now - BACK[0] - dice.random() * (BACK[1] - BACK[0]) for _ in range(count))
    shoppers = _Shoppers(dice, list(items), customers)
    made = []
    for number, (before, at) in enumerate(zip([trained_at(now), *times], times, strict=False)):
        size = customers * (number + 1) // count - customers * number // count
        late = shoppers.late(size // 4, before)
        who = shoppers.drawn(size, number)
        made.append(
            Moment(at=at, late=late, events=[event for one in who for event in shoppers.buys(one, at)], customers=who)
        )
    return made


class _Shoppers:
    """Who buys what."""

    def __init__(self, dice: random.Random, items: list[str], customers: int) -> None:
        self._dice, self._items = dice, items
        self._everybody = [f"c{number:08d}" for number in range(crowd(customers))]
        self._returning = set(self._everybody[:: round(1 / RETURNING)])
        self._taken: dict[str, list[Line]] = {}

    def drawn(self, size: int, number: int) -> list[str]:
        """So many different customers, some of whom nobody knows yet."""
        new = round(size * NEW)
        named = [self._dice.choice(NAMES).format(f"{number}-{place}") for place in range(new)]
        return self._dice.sample(self._everybody, size - new) + named

    def late(self, size: int, before: datetime) -> list[Outgoing]:
        """Baskets that come late; none of those who return things: what is returned was taken before, in time."""
        found: list[Outgoing] = []
        while len(found) < size:
            one = self._dice.choice(self._everybody)
            if one not in self._returning:
                found.append(_event(one, before - self._dice.random() * LATE, self._lines()))
        return found

    def buys(self, one: str, at: datetime) -> list[Outgoing]:
        """The baskets of a customer at a moment."""
        lines = self._lines()
        if one in self._returning:
            taken = self._taken.setdefault(one, [])
            back = [(item, -1.0, price) for item, _, price in [taken.pop()]] if taken else []
            if not back and self._dice.random() < 0.3:
                back = [(self._dice.choice(self._items), -1.0, 1.25)]  # of what may never have been bought
                lines = [line for line in lines if line[0] != back[0][0]] or [(self._items[0], 2.0, 3.5)]
            elif back and self._dice.random() < 0.3:
                return [_event(one, at, back)]
            lines = [line for line in lines if line[0] not in {item for item, _, _ in back}] + back
            taken += [line for line in lines if line[1] > 0][:1]
            return [_event(one, at, lines)]
        twice = [_event(one, at, self._lines())] if self._dice.random() < TWICE else []
        return [_event(one, at, lines), *twice]

    def _lines(self) -> list[Line]:
        chosen = self._dice.sample(self._items, self._dice.randint(1, LINES_MAX))
        return [(item, float(self._dice.randint(1, 9)), self._dice.randint(50, 2_000) / 100) for item in chosen]


def crowd(customers: int) -> int:
    """Entities of the simulated crowd that so many customers are drawn from, each at some of the moments."""
    return max(customers // 6, 1_000)


def _event(customer: str, at: datetime, lines: Sequence[Line]) -> Outgoing:
    of = [{"item_id": item, "quantity": quantity, "price": price} for item, quantity, price in lines]
    body = {"customer_id": customer, "observed_at": format_time(at), "lines": of}
    return Outgoing(value=json.dumps(body).encode(), key=customer.encode())
