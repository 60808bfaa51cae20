"""A replay in small, on real servers: what an event changes of served lists, and how that is counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest

from almanac.clock import format_time
from almanac.interactions import Simulated
from almanac.pipeline import days, hours
from almanac.rungs import Source
from almanac.settings import Settings, load_settings
from almanac.stack.servers import running_postgres, running_redis
from benchmarks.replay import parts
from benchmarks.replaying import Looked, Replay, Told, judged, spread, told
from features.store import apply
from pipelines.shop import shop
from streaming.publish import Outgoing
from tests.fresh import register_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

SMALL = replace(
    shop,
    source=replace(shop.source, simulated=Simulated(entities=40, items=30, history=days(6), lines_per_entity=20)),
    training=replace(shop.training, holdout=days(1)),
    ranking=replace(shop.ranking, leave_out=("bought_items", "basket_items"), leave_out_for=hours(12)),
    freshness=replace(shop.freshness, fresh_for=days(2)),
)
CUSTOMERS = 3


def after(event: Told, items: tuple[str, ...]) -> Told:
    """The same customer buys once more, an hour later."""
    at = event.at + timedelta(hours=1)
    lines = [{"item_id": item, "quantity": 1, "price": 2.5} for item in items]
    body = {"customer_id": event.entity, "observed_at": format_time(at), "lines": lines}
    sent = Outgoing(value=msgspec.json.encode(body), key=str(event.entity).encode())
    return Told(entity=event.entity, at=at, event=sent, taken=frozenset(items))


@pytest.fixture
def own_settings(tmp_path: Path, kafka_bootstrap: str) -> Iterator[Settings]:
    """Stores of the test's own: others of the session may have served the declared pipeline, partitioned otherwise."""
    (tmp_path / "redis").mkdir()
    with running_postgres(tmp_path / "postgres") as postgres_url, running_redis(tmp_path / "redis") as redis_url:
        yield load_settings(
            state_dir=tmp_path, postgres_url=postgres_url, redis_url=redis_url, kafka_bootstrap=kafka_bootstrap
        )


def test_lists_change_with_their_customers_events_and_generations_do_not(own_settings: Settings) -> None:
    settings = own_settings
    register_model(settings.models_dir, SMALL, (1.0, 0.1), ("near_weight", "own_count"))
    first, events = told(SMALL, settings, 1)
    chosen = list({event.entity: event for event in events if event.taken}.values())[:CUSTOMERS]
    assert len(chosen) == CUSTOMERS
    with Replay(SMALL, settings) as replay:
        apply(settings)
        replay.night(first)
        before = replay.through(chosen)
        again = [after(event, looked.nightly[:1]) for event, looked in zip(chosen, before, strict=True)]
        later = replay.through(again)
    for event, one, two in zip(chosen, before, later, strict=True):
        assert (one.source, one.streamed, one.since_night) == (Source.BATCH, one.nightly, False)
        assert (two.source, two.nightly, two.since_night) == (Source.STREAM, one.nightly, True)
        assert two.streamed
        assert not event.taken & set(two.streamed)
    assert any(event.taken & set(two.nightly) for event, two in zip(chosen, later, strict=True))


def _looked(nightly: str, streamed: str, entity: str = "a") -> Looked:
    return Looked(
        entity=entity, taken=frozenset("xy"), nightly=tuple(nightly), streamed=tuple(streamed),
        source=Source.STREAM, since_night=True,
    )  # fmt: skip


def test_recall_is_counted_basket_by_basket_and_customers_are_drawn() -> None:
    found = [_looked("xab", "abc"), _looked("abc", "yxb"), _looked("", "abx", "b")]
    quality = judged(found, 3)
    assert [one.tolist() for one in quality["recall"]] == [[0.5, 0, 0], [0, 1, 0.5]]
    assert quality["ndcg"][1][1] == 1
    assert 0 < quality["ndcg"][1][2] < quality["ndcg"][0][0] < 1
    owners, gains = np.array(["a", "a", "b"]), np.array([-0.5, 1.0, 0.5])
    low, high = spread(owners, gains, 1, (2.5, 97.5))
    assert (low, high) == (0.25, 0.5)
    assert spread(owners, gains, 1, (2.5, 97.5)) == (low, high)


def test_events_go_together_until_an_entity_comes_again() -> None:
    sent = Outgoing(value=b"", key=b"")
    at = shop.source.since
    events = [Told(entity=who, at=at, event=sent, taken=frozenset()) for who in "abcabbc"]
    assert ["".join(str(event.entity) for event in part) for part in parts(events)] == ["abc", "ab", "bc"]
    assert [len(part) for part in parts(events, 2)] == [2, 2, 1, 2]
