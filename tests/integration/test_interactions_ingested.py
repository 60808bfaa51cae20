"""Views of interactions through the stores: histories and items offline, materialized, and read back online."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis

from almanac.interactions import Simulated
from almanac.pipeline import Interactions
from almanac.settings import Settings, load_settings
from features.ingest import refresh
from features.interactions import ANY_ITEM, HISTORY, STATS, TOGETHER, windows_at
from features.materialize import materialize
from features.offline import historical
from features.online import OnlineFeatures
from features.online_reading import MISSING, PRESENT
from features.ranked import items_at, ragged_of
from features.sources.lines import open_lines
from features.tables import entities, examine, tables_of
from pipelines.shop import shop

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

CUTOFF = datetime(2026, 3, 20, 3, tzinfo=UTC)
assert isinstance(shop.source, Interactions)
assert shop.ranking is not None
SMALL = replace(
    shop,
    source=replace(
        shop.source, simulated=Simulated(entities=60, items=40, history=timedelta(days=19), lines_per_entity=20.0)
    ),
)
ITEMS = replace(
    SMALL,
    entity=shop.ranking.item,
    features=shop.ranking.features,
    ranking=None,
    default=None,
    source=None,
    stream=None,
)
"""The items' views as a pipeline of their own."""


@dataclass
class Stored:
    settings: Settings
    as_of: datetime
    customers: list[str]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Stored]:
    state = tmp_path_factory.mktemp("interactions")
    settings = load_settings(state_dir=state, redis_url=redis_url, postgres_url=None, source_data="", source_seed=7)
    open_lines(SMALL, settings, now=datetime(2026, 3, 20, tzinfo=UTC))
    found = refresh(SMALL, settings, CUTOFF, window=timedelta(days=2))
    known = next(entities(tables_of(SMALL, settings), SMALL, found.as_of))
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        materialize(SMALL, settings, found.as_of)
        yield Stored(settings, found.as_of, [str(customer) for customer in known])
        client.flushdb()


def offline(stored: Stored, customers: list[str], moment: datetime) -> pa.Table:
    asked = {
        "customer_id": customers,
        "event_timestamp": pa.array([moment] * len(customers), pa.timestamp("us", "UTC")),
    }
    return historical(SMALL, stored.settings, pa.table(asked))


def lists_in(table: pa.Table, names: list[str]) -> dict[str, Any]:
    return {name: ragged_of(table[name].combine_chunks()) for name in names}


def test_what_is_read_online_is_what_lies_offline_to_the_last_element(stored: Stored) -> None:
    assert len(stored.customers) > 40
    asked = [*stored.customers, "nobody", stored.customers[0]]
    table = offline(stored, asked, stored.as_of)
    found = OnlineFeatures(SMALL, stored.settings).features(asked)
    for name, kind in HISTORY.items():
        wanted = table[name].to_pylist()
        if kind.endswith("s"):
            held = found.lists[name]
            lists = [held.values[a:b].tolist() for a, b in zip(held.offsets, held.offsets[1:], strict=False)]
            assert lists == [one or [] for one in wanted], name
        else:
            numbers = [None if np.isnan(value) else int(value) for value in found.columns[name]]
            assert numbers == wanted, name
    assert found.views[0].status.tolist() == [PRESENT] * len(stored.customers) + [MISSING, PRESENT]


def test_windows_are_the_same_from_either_store(stored: Stored) -> None:
    table = offline(stored, stored.customers, stored.as_of)
    found = OnlineFeatures(SMALL, stored.settings).features(stored.customers)
    moments = np.full(len(stored.customers), int(CUTOFF.timestamp()) * 1_000_000)
    names = [name for name, kind in HISTORY.items() if kind.endswith("s")]
    scalars = {name: table[name].to_numpy() for name in ("basket_at", "first_at", "orders")}
    online = {name: found.columns[name].astype(np.int64) for name in scalars}
    left, right = windows_at(scalars, lists_in(table, names), moments), windows_at(online, found.lists, moments)
    for name, values in left.items():
        np.testing.assert_array_equal(values.view(np.uint32), right[name].view(np.uint32), err_msg=name)
    assert left["orders_ever"].min() >= 1


def test_a_moment_of_the_past_has_nothing_of_its_future(stored: Stored) -> None:
    moment = stored.as_of - timedelta(hours=30)
    table = offline(stored, stored.customers, moment)
    limit = int(moment.timestamp() * 1_000_000)
    held = lists_in(table, ["seen_at", "bought_at"])
    assert max(values.values.max() for values in held.values()) <= limit
    assert sum(offline(stored, stored.customers, stored.as_of)["orders"].to_pylist()) > sum(table["orders"].to_pylist())


def test_items_online_are_the_items_of_the_night(stored: Stored) -> None:
    night = items_at(SMALL, stored.settings, stored.as_of)
    found = OnlineFeatures(ITEMS, stored.settings).features([*night.keys, ANY_ITEM])
    for name in STATS:
        np.testing.assert_array_equal(found.columns[name][:-1].astype(np.float32), night.columns[name], err_msg=name)
    near, weights = (found.lists[name] for name in TOGETHER)
    assert near.lengths.tolist()[:-1] == night.neighbours.lengths.tolist()
    assert [night.keys[place] for place in night.popular] == near.values[near.offsets[-2] :].tolist()
    assert weights.values.dtype == np.float32


def test_definitions_with_lists_are_sound_for_who_keeps_files_up(stored: Stored) -> None:
    assert examine(SMALL, stored.settings, CUTOFF) == stored.as_of
