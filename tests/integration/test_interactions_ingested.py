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

from almanac.clock import micros_of
from almanac.errors import FeatureError
from almanac.interactions import Simulated
from almanac.list_scoring import rank
from almanac.pipeline import Interactions
from almanac.ragged import Ragged
from almanac.ranking_declared import ANY_ITEM
from almanac.settings import Settings, load_settings
from features.ingest import refresh
from features.interactions.fold import Event, advance
from features.interactions.history import HISTORY, STATS, TOGETHER, windows_at
from features.materialize.run import materialize
from features.materialize.watermarks import put_token, token_key, tokens
from features.offline.reading import historical
from features.online import OnlineFeatures, observation_row
from features.online_histories import ITEMS_KEPT, OnlineHistories
from features.online_reading import MISSING, PRESENT
from features.rankable import entities_of, history_lists, placed
from features.ranked import items_at, ragged_of
from features.sources.lines import open_lines
from features.tables import entities, examine, tables_of
from pipelines.shop import shop
from streaming.records import FeatureRow, Folded
from streaming.sink import pushed_row
from tests.baskets import Sums

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
    moments = np.full(len(stored.customers), micros_of(CUTOFF))
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
    limit = micros_of(moment)
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


def test_a_worker_reads_histories_folds_an_event_in_and_of_two_rows_of_one_moment_the_later_made_one_stays(
    stored: Stored,
) -> None:
    online, customer = OnlineHistories(SMALL, stored.settings), stored.customers[0]
    held = online.read([customer])[customer]
    assert held is not None
    row, at, created = held
    folded = advance(row, Event(entity=customer, at=at + 1_000_000, lines=(("A NEW ITEM", 2.0, 1.5),)))

    def push(history: dict[str, Any], made: int) -> None:
        said = Folded(row=history, at=folded.at, created=made)
        found = FeatureRow(
            entity=customer, observed_at=CUTOFF, value={}, topic="t", kafka_partition=0, kafka_offset=0, trace=None,
            folded=said,
        )  # fmt: skip
        online.push(pa.Table.from_pylist([dict(pushed_row(SMALL, found, observation_row))]))

    push(folded.row, created + 5)
    assert online.read([customer])[customer] == (folded.row, folded.at, created + 5)
    push(row, created + 4)  # a zombie's, of the same moment
    assert online.read([customer])[customer] == (folded.row, folded.at, created + 5)


def test_an_entity_without_a_row_is_new_only_where_its_partition_was_materialized(stored: Stored) -> None:
    online, name = OnlineHistories(SMALL, stored.settings), SMALL.name
    with pytest.raises(FeatureError, match="the online store has no customer_history of bucket"):
        online.read(["nobody has seen me"])
    with redis.Redis.from_url(stored.settings.need("redis_url")) as client:
        put_token(client, name, "customer_history", range(SMALL.partitions.count), "done")
        assert online.read(["nobody has seen me"]) == {"nobody has seen me": None}
        number = SMALL.partitions.partition_of("nobody has seen me")
        online.lost(["nobody has seen me"])
        after = tokens(client, name, "customer_history", SMALL.partitions.count)
        assert {n for n, token in after.items() if token != "done"} == {number}  # it alone is sent again
        client.hdel(token_key(name), f"customer_history:{number}")
        online.lost(["nobody has seen me"])  # an emptied store does not look filled
        with pytest.raises(FeatureError, match="the online store has no customer_history of bucket"):
            online.read(["nobody has seen me"])
        client.delete(token_key(name))


def test_lists_of_items_that_were_asked_for_are_those_of_all_items_offline(stored: Stored) -> None:
    ranking = shop.ranking
    assert ranking is not None
    online = OnlineHistories(SMALL, stored.settings)
    rows = [held[0] for held in online.read(stored.customers[1:]).values() if held is not None]
    columns, lists = history_lists(rows)
    found = online.items(lists["bought_items"], stored.as_of)
    every = items_at(SMALL, stored.settings, stored.as_of)
    moments = np.full(len(rows), micros_of(stored.as_of))
    entities = entities_of(SMALL, stored.customers[1:], moments, columns, lists)
    asked = rank(placed(entities, found.items), found.items, Sums(), ranking)
    assert asked == rank(placed(entities, every), every, Sums(), ranking)
    assert min(len(one.items) for one in asked) == min(ranking.kept, int(every.answerable("available").sum()))


def test_lists_without_what_is_popular_are_not_made_when_its_row_is_lost(stored: Stored) -> None:
    histories = Ragged.of([[]], object)
    reader = OnlineFeatures(ITEMS, stored.settings)._reader
    (key,) = {key for key in reader.keys([ANY_ITEM]) if b"together" in key} or {reader.keys([ANY_ITEM])[-1]}
    with redis.Redis.from_url(stored.settings.need("redis_url")) as client:
        value = client.get(key)
        assert client.delete(key) == 1
        with pytest.raises(FeatureError, match=r"no row '\*' of what is popular.*materialize \S+ --full"):
            OnlineHistories(SMALL, stored.settings).items(Ragged.of([[*items_known(stored)]], object), stored.as_of)
        client.set(key, value)  # type: ignore[arg-type]
    assert OnlineHistories(SMALL, stored.settings).items(histories, stored.as_of).popular


def items_known(stored: Stored) -> list[str]:
    """Some items of the night."""
    return list(items_at(SMALL, stored.settings, stored.as_of).keys[:3])


def test_items_are_kept_until_a_materialization_has_written_others(stored: Stored) -> None:
    online, histories = OnlineHistories(SMALL, stored.settings), Ragged.of([["NOBODY SELLS THIS"]], object)
    found = online.items(histories, stored.as_of)
    assert online.items(histories, stored.as_of + ITEMS_KEPT) is found
    assert online.items(histories, stored.as_of + 2 * ITEMS_KEPT) is not found
    found = online.items(histories, stored.as_of)
    with redis.Redis.from_url(stored.settings.need("redis_url")) as client:
        put_token(client, SMALL.name, "item_stats", [SMALL.partitions.count - 1], "another")
        assert online.items(histories, stored.as_of) is not found
        client.delete(token_key(SMALL.name))
