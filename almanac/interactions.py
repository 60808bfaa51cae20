"""Where a pipeline of buckets gets its features from: what its entities did with items, as a declaration says it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from almanac.checking import need_a, need_all, need_duration, need_name, need_number, need_range
from almanac.errors import DeclarationError


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns of a file of interactions are called: a row is one line, an item within a basket.

    Args:
        entity, item, quantity, price, time: names of the columns; the item's may hold a description, whose
            normalised text is then the item's key.
    """

    entity: str
    item: str
    quantity: str
    price: str
    time: str

    def __post_init__(self) -> None:
        names = [self.entity, self.item, self.quantity, self.price, self.time]
        for name in names:
            need_a("a name of Columns", name, str, "give the column's name")
        if "" in names or len(set(names)) != len(names):
            raise DeclarationError(f"Columns names {', '.join(map(repr, names))}: give five different names")


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """The source where no file is named: made up, the same for the same seed.

    Args:
        entities, items: how many there are at its end, those who came late included.
        history: how far it reaches back from now.
        lines_per_entity: on average, over the whole history.
    """

    entities: int = 2_000
    items: int = 400
    history: timedelta = timedelta(days=180)
    lines_per_entity: float = 30.0

    def __post_init__(self) -> None:
        need_number("Simulated.entities", self.entities, 1, 100_000_000, whole=True)
        need_number("Simulated.items", self.items, 20, 1_000_000, whole=True)
        need_number("Simulated.lines_per_entity", self.lines_per_entity, 1, 10_000)
        need_duration("Simulated.history", self.history)
        if not timedelta(days=2) <= self.history <= timedelta(days=3_650):
            raise DeclarationError(f"Simulated.history is {self.history}: give 2 to 3,650 days")


@dataclass(frozen=True, kw_only=True)
class Interactions:
    """Interactions of entities with items: purchases, plays, visits. A line has an item, a quantity and a price.

    Args:
        item: name of the item's key, in events and feature views.
        since: nothing happened before; earlier lines are refused.
        columns: of the file that the settings name.
        time_zone: of times in the file that name none.
        quantity, price: least and greatest that can be true of a line. A negative quantity is a return.
        not_items: keys of lines that are no items, such as postage.
        available_for: an item that nobody took for so long has left the range.
        items_every: whole days after which it is said anew how items sell, what is popular and what has left the
            range; in between an entity with nothing new has nothing to be scored anew for.
        history, stats, together: names of the feature views: an entity's history, an item's numbers, and the
            items that go together with it.
        simulated: what stands in for a file.
    """

    item: str = "item_id"
    since: datetime = datetime(2000, 1, 1, tzinfo=UTC)
    columns: Columns = field(
        default_factory=lambda: Columns(
            entity="entity_id", item="item_id", quantity="quantity", price="price", time="observed_at"
        )
    )
    time_zone: str = "UTC"
    quantity: tuple[float, float] = (1, 100_000)
    price: tuple[float, float] = (0.001, 100_000)
    not_items: tuple[str, ...] = ()
    available_for: timedelta = timedelta(days=60)
    items_every: timedelta = timedelta(days=1)
    history: str = "history"
    stats: str = "item_stats"
    together: str = "item_together"
    simulated: Simulated = field(default_factory=Simulated)

    def __post_init__(self) -> None:
        for name in ("item", "history", "stats", "together"):
            need_name(f"Interactions.{name}", getattr(self, name))
        if len({self.history, self.stats, self.together}) != 3:
            raise DeclarationError("Interactions names two views alike: give history, stats and together a name each")
        need_a("Interactions.columns", self.columns, Columns, "give Columns(entity=…, item=…, …)")
        need_a("Interactions.simulated", self.simulated, Simulated, "give Simulated(entities=…, items=…)")
        need_a("Interactions.since", self.since, datetime, "give a time with a time zone")
        if self.since.tzinfo is None:
            raise DeclarationError(f"Interactions.since is {self.since}, without a time zone: give it tzinfo=UTC")
        for name, least in (("quantity", 1.0), ("price", 0.0)):
            need_range(f"Interactions.{name}", getattr(self, name))
            need_number(f"Interactions.{name}[0]", getattr(self, name)[0], least, math.inf)
        need_all("Interactions.not_items", self.not_items, str, "give a tuple of keys, such as ('POSTAGE',)")
        need_duration("Interactions.available_for", self.available_for)
        if self.available_for < timedelta(days=1):
            raise DeclarationError(f"Interactions.available_for is {self.available_for}: give a day at least")
        need_duration("Interactions.items_every", self.items_every)
        if self.items_every % timedelta(days=1) or not timedelta(days=1) <= self.items_every <= timedelta(days=31):
            raise DeclarationError(f"Interactions.items_every is {self.items_every}: give 1 to 31 whole days")
        try:
            ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
            raise DeclarationError(
                f"Interactions.time_zone is {self.time_zone!r}: give a name such as 'Europe/London' or 'UTC'"
            ) from None
