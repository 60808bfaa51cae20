"""A small stream of baskets for tests: a pipeline with a ranking, its items and a model that ranks by all columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from almanac.clock import format_time, utc_now
from almanac.pipeline import Lines, Pipeline, Stream
from almanac.ragged import Ragged
from almanac.ranking import Items
from almanac.ranking_declared import Ranking
from almanac.settings import Settings
from features.interactions.history import HISTORY
from features.online import open_redis, redis_errors
from features.online_reading import LAYOUT, PLAN_VERSION, Plan, Reader, View, read
from features.packed.arrow import encode, micros
from features.packed.codec import Column
from features.packed.store import put_if_newer
from features.rankable import Range, history_rows
from pipelines.shop import shop
from streaming.publish import Outgoing
from tests.fresh import register_model

LINES = Lines(item="item_id", values={"quantity": (-10_000.0, 10_000.0), "price": (0.0, 100_000.0)}, most=50)
RANGE = tuple(f"ITEM {number}" for number in range(30))
"""Items of the range; the last five have left it."""


def basket_pipeline(name: str) -> Pipeline:
    """`shop` with topics of its own, and a short list."""
    return replace(
        shop,
        name=name,
        model=f"{name}@champion",
        stream=Stream(topic=f"{name}.purchases", lines=LINES),
        ranking=Ranking(
            item="item_id", features="shop_items_v1", length=5, kept=10, candidates_max=20,
            leave_out=("basket_items",), available="available", attributes=("price",),
        ),
    )  # fmt: skip


def items() -> Items:
    """The range: neighbours are the next five, popular is every other one."""
    near = [[RANGE[(at + step) % len(RANGE)] for step in range(1, 6)] for at in range(len(RANGE))]
    keys = [*RANGE, "*"]
    n = len(keys)
    columns = {
        "price": np.array([1.0 + at for at in range(n)], np.float32),
        "available": np.array([float(at < 25) for at in range(n)], np.float32),
        "sold_30d": np.array([float(n - at) for at in range(n)], np.float32),
    }
    neighbours = [*near, list(RANGE[::2])]
    weights = [[1 / (place + 1) for place in range(len(held))] for held in neighbours]
    lists = {"together_items": Ragged.of(neighbours, object), "together_weights": Ragged.of(weights, np.float32)}
    return Items.of(keys, columns, lists)


class Sums:
    """A model that mixes columns of pair, item and entity, so that a difference in any is seen."""

    inputs = ("own_place", "own_days", "near_weight", "popular_place", "price_to_own", "sold_30d", "lines_30d")
    outputs = ("score",)

    def score_matrix(self, matrix: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        """Weighted, added in one order."""
        total = np.zeros(len(matrix), np.float32)
        for weight, column in enumerate(matrix.T, start=1):
            total += np.float32(weight) * column
        return {"score": total}


def register_sums(settings: Settings, pipeline: Pipeline) -> str:
    """Register and alias a model that ranks by a weighted sum. Returns its id."""
    weights = tuple(float(weight) for weight, _ in enumerate(Sums.inputs, start=1))
    return register_model(settings.models_dir, pipeline, weights, Sums.inputs).id


class HistoriesInMemory:
    """An online store of histories, for streams whose test is not about the real one."""

    def __init__(self, pipeline: Pipeline | None = None, settings: Settings | None = None) -> None:
        self.rows: dict[Any, tuple[dict[str, Any], int, int]] = {}
        self.items_at = 0
        self.asked_again: list[Any] = []

    def read(self, entities: Sequence[Any]) -> Mapping[Any, tuple[dict[str, Any], int, int] | None]:
        """As `OnlineHistories` does."""
        return {entity: self.rows.get(entity) for entity in entities}

    def items(self, histories: Ragged, at: datetime) -> Range:
        """All of them, older than any event."""
        return Range(items(), self.items_at)

    def lost(self, entities: Sequence[Any]) -> None:
        """As `OnlineHistories` does."""
        self.asked_again += entities


_KINDS = {"int64": "INT64", "int64s": "INT64_LIST", "strings": "STRING_LIST"}
_SCALARS = tuple(name for name, kind in HISTORY.items() if not kind.endswith("s"))
_LISTS = tuple(name for name, kind in HISTORY.items() if kind.endswith("s"))


class PackedHistories:
    """Histories in Redis as the real ones lie there, read and written without Feast; the range is `items`."""

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        self._redis = open_redis(settings.need("redis_url"))
        self._entity = pipeline.entity
        packed = tuple(Column(name, _KINDS[kind]) for name, kind in HISTORY.items())
        view = View(
            name=f"{pipeline.name}_history", packed=packed, features=_SCALARS, columns=_SCALARS, observed=True,
            lists=_LISTS,
        )  # fmt: skip
        plan = Plan(
            version=PLAN_VERSION, layout=LAYOUT, service="baskets", project="tests", join_key=pipeline.entity,
            key_type="string", views=(view,),
        )  # fmt: skip
        self._reader = Reader(plan)

    def read(self, entities: Sequence[Any]) -> Mapping[Any, tuple[dict[str, Any], int, int] | None]:
        """As `OnlineHistories` does."""
        with redis_errors():
            found = read(self._redis, self._reader, list(entities), None)
        (view,) = found.views
        assert view.created is not None
        rows = zip(history_rows(found), view.times.tolist(), view.created.tolist(), strict=True)
        return {
            entity: None if row is None else (row, at, created)
            for entity, (row, at, created) in zip(entities, rows, strict=True)
        }

    def items(self, histories: Ragged, at: datetime) -> Range:
        """All of them, older than any event."""
        return Range(items(), 0)

    def lost(self, entities: Sequence[Any]) -> None:
        """As `OnlineHistories` does; nothing here is materialized."""

    def keys(self, entities: Sequence[Any]) -> list[bytes]:
        """Where the histories of these entities lie."""
        return self._reader.keys(entities)

    def push(self, rows: pa.Table) -> None:
        """As `OnlineFeatures` does."""
        (layout,) = self._reader.layouts
        times, created = (micros(rows[name], layout.view) for name in ("event_timestamp", "created_timestamp"))
        values = encode(layout, rows, times, created)
        with redis_errors():
            keys = self._reader.keys(rows[self._entity].to_pylist())
            put_if_newer(self._redis, layout, keys, values, ties_replace=True)


def purchase(customer: str, lines: Sequence[tuple[str, float, float]], observed_at: datetime | None = None) -> Outgoing:
    """An event: item, quantity and price of each line; a minute old unless told."""
    moment = observed_at or utc_now() - timedelta(minutes=1)
    body = {
        "customer_id": customer,
        "observed_at": format_time(moment),
        "lines": [{"item_id": item, "quantity": quantity, "price": price} for item, quantity, price in lines],
    }
    return Outgoing(value=json.dumps(body).encode(), key=customer.encode())
