"""Random customers, each ranked three ways at a moment of their own: bulk, event by event, and out of packed rows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from almanac.clock import at_micros, micros_of
from almanac.ladder import Candidate, Compute, Terms
from almanac.list_scoring import rank
from almanac.ragged import Ragged
from almanac.ranked import RankedList
from almanac.ranking import Items
from almanac.settings import load_settings
from features.interactions.bulk import Baskets, histories
from features.interactions.fold import Event as Basket
from features.interactions.history import HISTORY
from features.online_reading import LAYOUT, PLAN_VERSION, Plan, Reader, View
from features.packed.arrow import encode
from features.packed.codec import Column
from features.rankable import Range, items_in_question
from features.ranked import entities_of
from serving_cache.lookup.listing import listed
from serving_cache.lookup.online import Read
from serving_cache.lookup.predicting import Question
from streaming.duplicates import Duplicates
from streaming.folding import Folding
from streaming.handle import sort
from streaming.models import Model
from streaming.records import Consumed, read_prediction
from tests.baskets import basket_pipeline, purchase
from tests.parity import trees

PIPELINE = basket_pipeline("parity")
RANGE = [f"ITEM {number:03d}" for number in range(200)]
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ITEMS_AT = micros_of(NOW - timedelta(days=2))
KINDS = {
    "int64": "INT64", "float32": "FLOAT", "int64s": "INT64_LIST", "float32s": "FLOAT_LIST", "strings": "STRING_LIST",
}  # fmt: skip
STATS = {"sold_7d": "float32", "sold_30d": "float32", "price": "float32", "available": "float32"}
NEAR = {"together_items": "strings", "together_weights": "float32s"}
SPREAD = {
    "own_place": (-1.0, 30.0), "own_count": (0.0, 5.0), "own_days": (0.0, 60.0), "near_weight": (0.0, 2.0),
    "near_count": (0.0, 5.0), "popular_place": (-1.0, 50.0), "price_to_own": (0.0, 3.0), "sold_30d": (0.0, 90.0),
    "price": (0.5, 20.0), "orders_30d": (0.0, 6.0), "spend_90d": (0.0, 400.0), "days_since_last": (0.0, 60.0),
    "price_mean": (-1.0, 20.0),
}  # fmt: skip
PER_BATCH = 100
Lists = dict[str, tuple[datetime, RankedList]]


@dataclass(frozen=True)
class World:
    """Customers with their baskets, in the order in which they arrive."""

    baskets: list[Basket]
    seed: int

    @classmethod
    def of(cls, customers: int, seed: int) -> World:
        """Customers with one to twelve baskets in the last 120 days, about half of them since the items' night."""
        dice = random.Random(seed)
        found = []
        for number in range(customers):
            for _ in range(dice.randint(1, 12)):
                back = dice.choice([dice.uniform(0.01, 2), dice.uniform(2, 6)])
                at = micros_of(NOW - timedelta(days=back)) // 1_000_000 * 1_000_000
                items = dice.sample(RANGE, dice.randint(1, 4))
                lines = tuple((item, float(dice.randint(1, 9)), dice.randint(50, 2_000) / 100) for item in items)
                found.append(Basket(entity=f"c{number}", at=at, lines=lines))
        distinct = list({basket.hash: basket for basket in found}.values())
        dice.shuffle(distinct)
        return cls(distinct, seed)

    @cached_property
    def scorer(self) -> Any:
        """The model."""
        return trees.scorer(SPREAD, ("score",), PIPELINE.entity)

    @cached_property
    def items(self) -> list[dict[str, Any]]:
        """Rows of items; the last stands for any."""
        dice = random.Random(self.seed + 1)
        rows = []
        for key in [*RANGE, "*"]:
            near = dice.sample(RANGE, dice.randint(0, 20))
            numbers = {name: float(np.float32(dice.uniform(0, 60))) for name in STATS}
            numbers["available"] = float(dice.random() < 0.9)
            weights = sorted((float(np.float32(dice.random())) for _ in near), reverse=True)
            rows.append({"item_id": key, **numbers, "together_items": near, "together_weights": weights})
        return rows

    @cached_property
    def every_item(self) -> Items:
        """All of them, as batch has them."""
        columns = {name: np.array([row[name] for row in self.items], np.float32) for name in STATS}
        lists = {
            "together_items": Ragged.of([row["together_items"] for row in self.items], object),
            "together_weights": Ragged.of([row["together_weights"] for row in self.items], np.float32),
        }
        return Items.of([row["item_id"] for row in self.items], columns, lists)

    @cached_property
    def histories(self) -> pa.Table:
        """Each customer's newest row, made in bulk."""
        entities, items = sorted({b.entity for b in self.baskets}), sorted(RANGE)
        place, item = ({key: at for at, key in enumerate(keys)} for keys in (entities, items))
        ordered = sorted(self.baskets, key=lambda b: (b.entity, b.at, b.hash))
        rows = [(place[b.entity], item[x[0]], b.at, b.hash, x[1], x[2]) for b in ordered for x in b.lines]
        columns = list(zip(*rows, strict=True))
        wholes = [np.array(column, np.int64) for column in columns[:4]]
        quantity, price = (np.array(column, np.float64) for column in columns[4:])
        return histories(Baskets(entities, items, *wholes, quantity, price), None, 0, newest_only=True)

    def batch(self) -> Lists:
        """As a batch run does it: all items, rows out of files, pieces of customers."""
        ranking = PIPELINE.ranking
        assert ranking is not None
        found: Lists = {}
        table = self.histories
        for start in range(0, table.num_rows, 257):
            part = table.slice(start, 257)
            moments = np.maximum(part["at"].to_numpy(), ITEMS_AT)
            rows = part.drop_columns(["at"]).rename_columns([PIPELINE.entity, *part.column_names[2:]])
            lists = rank(entities_of(PIPELINE, rows, self.every_item, moments), self.every_item, self.scorer, ranking)
            keys = part["entity"].to_pylist()
            found |= {k: (at_micros(m), one) for k, m, one in zip(keys, moments.tolist(), lists, strict=True)}
        return found

    def stream(self) -> Lists:
        """As a worker does it: event by event, in batches of any size, the last list of each customer."""
        store = _Store(self)
        settings = load_settings(state_dir=Path("unused"), kafka_bootstrap="localhost:1")
        folding = Folding(PIPELINE, settings, lambda pipeline, settings: store, _Nowhere())
        found: Lists = {}
        dice, start, offset = random.Random(self.seed + 2), 0, 0
        while start < len(self.baskets):
            size = dice.randint(1, PER_BATCH)
            records = []
            for basket in self.baskets[start : start + size]:
                sent = purchase(basket.entity, basket.lines, at_micros(basket.at))
                records.append(Consumed(topic="t", partition=0, offset=offset, key=sent.key, value=sent.value))
                offset += 1
            done = folding.handle(sort(records, PIPELINE, Duplicates(), NOW), [Model("parity-v1", self.scorer)], NOW)
            assert done.dead_letters == ()
            for record in done.features:
                folding.delivered(None, _Delivered(record.key))
            folding.committed()
            for record in done.predictions:
                value = Consumed(topic="p", partition=0, offset=0, key=record.key, value=record.value)
                overlay = read_prediction(PIPELINE, value)
                one: Any = overlay.values["score"]
                found[overlay.entity] = (overlay.as_of, one)
            start += size
        return found

    def fresh(self) -> Lists:
        """As a lookup does it: packed rows, two questions for items, some customers at a time."""
        rows = self.histories
        packed = encode(_HISTORY.layouts[0], rows, rows["at"].to_numpy(), rows["at"].to_numpy())
        held = dict(zip(rows["entity"].to_pylist(), packed, strict=True))
        ask = self._asking(held)
        found: Lists = {}
        dice, keys, start = random.Random(self.seed + 3), list(held), 0
        while start < len(keys):
            some = keys[start : start + dice.randint(1, 40)]
            start += len(some)
            wish = Compute(model=None, newer_than=None)
            asked = Question(
                PIPELINE, dict.fromkeys(some, wish), Terms(outputs=PIPELINE.outputs, freshness=PIPELINE.freshness), NOW
            )
            made = asyncio.run(listed(asked, self.scorer, "parity-v1", ask, _here))
            for key, one in made.items():
                assert isinstance(one, Candidate), one
                assert one.as_of is not None
                value: Any = one.values["score"]
                found[str(key)] = (one.as_of, value)
        return found

    @cached_property
    def packed_items(self) -> dict[str, list[bytes | None]]:
        """Of each item a value of each view."""
        table = pa.Table.from_pylist(self.items)
        times = np.full(table.num_rows, ITEMS_AT)
        values = [encode(layout, table, times) for layout in _ITEMS.layouts]
        return {row["item_id"]: [each[at] for each in values] for at, row in enumerate(self.items)}

    def _asking(self, held: Mapping[str, bytes]) -> Callable[[str, Sequence[Any]], Any]:
        async def ask(service: str, keys: Sequence[Any]) -> Read:
            if service == PIPELINE.features:
                return Read(_HISTORY, {key: [held[key]] for key in keys})
            return Read(_ITEMS, {key: self.packed_items.get(key, [None, None]) for key in keys})

        return ask


class _Store:
    """An online store that lags for ever: the worker lives on its own rows."""

    def __init__(self, world: World) -> None:
        self._world = world

    def read(self, entities: Sequence[Any]) -> Mapping[Any, None]:
        return dict.fromkeys(entities)

    def lost(self, entities: Sequence[Any]) -> None:
        """Nothing is."""

    def items(self, histories: Ragged, at: datetime) -> Range:
        asking = items_in_question(histories)
        keys = next(asking)
        while True:
            rows = [self._world.packed_items.get(key, [None, None]) for key in keys]
            values = [row[view] for view in range(2) for row in rows]
            try:
                keys = asking.send(_ITEMS.decode(values, at))
            except StopIteration as end:
                found: Range = end.value
                return found


class _Nowhere:
    """A features sink that has applied nothing."""

    def ends(self) -> dict[int, int]:
        return {}

    def behind(self, ends: Mapping[int, int]) -> None:
        return None

    def committed(self) -> dict[int, int]:
        return {}

    def close(self) -> None:
        """Nothing is open."""


class _Delivered:
    def __init__(self, key: bytes | None) -> None:
        self._key = key

    def key(self) -> bytes | None:
        return self._key

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 0


async def _here(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)


def _reader(service: str, join_key: str, views: Mapping[str, Mapping[str, str]]) -> Reader:
    made = []
    for name, columns in views.items():
        scalars = tuple(c for c, kind in columns.items() if not kind.endswith("s"))
        lists = tuple(c for c, kind in columns.items() if kind.endswith("s"))
        packed = tuple(Column(c, KINDS[kind]) for c, kind in columns.items())
        made.append(View(name=name, packed=packed, features=scalars, columns=scalars, lists=lists))
    plan = Plan(
        version=PLAN_VERSION, layout=LAYOUT, service=service, project="parity", join_key=join_key, key_type="string",
        views=tuple(made),
    )  # fmt: skip
    return Reader(plan)


_HISTORY = _reader("histories", PIPELINE.entity, {"history": HISTORY})
_ITEMS = _reader("items", "item_id", {"stats": STATS, "together": NEAR})
