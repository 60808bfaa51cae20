"""Our online store on a Redis Cluster of three nodes, and on a Redis behind a Sentinel."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from feast import FeatureStore
from redis.cluster import RedisCluster

from almanac.stack.server import HOST
from features.packed.keys import BUCKETS
from features.packed.views import keys_of
from tests.feast_pairs import NOW, OURS, definitions, driver_rows, open_store
from tests.redises import MASTER, running_cluster, running_sentinel

pytestmark = pytest.mark.filterwarnings(  # Feast's own
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore:On demand feature view:RuntimeWarning"
)

ASKED = ["driver_stats:trips", "driver_stats:name"]


def check(store: FeatureStore, folder: Path) -> None:
    """Writes, reads, awaited reads and deletion."""
    store.apply(definitions(folder))
    rows = driver_rows()
    store.push("driver_push", rows)
    store.push("driver_push", rows.assign(trips=0, ts=rows["ts"] - timedelta(seconds=1)))
    everyone = {"driver_id": rows["driver_id"].tolist()}
    found = store.get_online_features(ASKED, everyone).to_dict()
    assert found["trips"] == rows["trips"].tolist()

    async def read() -> object:
        answer = await store.get_online_features_async(ASKED, everyone)
        await store.close()
        return answer.to_dict()

    assert asyncio.run(read()) == found
    store.push("driver_push", rows.assign(trips=range(len(rows)), ts=NOW + timedelta(seconds=1)))
    assert store.get_online_features(ASKED, everyone).to_dict()["trips"] == list(range(len(rows)))
    store.teardown()


def test_a_cluster(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as ports:
        nodes = ",".join(f"{HOST}:{port}" for port in ports)
        store = open_store(tmp_path / "repo", OURS, redis_type="redis_cluster", connection_string=nodes)
        check(store, tmp_path / "repo")
        with RedisCluster(host=HOST, port=ports[0]) as client:
            assert client.dbsize() <= len(ports)  # what lies beside the values
            slots = {client.keyslot(b"f{%02x}" % bucket) for bucket in range(BUCKETS)}
            owners = {client.nodes_manager.get_node_from_slot(slot).port for slot in slots}
        assert owners == set(ports)


def test_a_redis_behind_a_sentinel(tmp_path: Path) -> None:
    with running_sentinel(tmp_path) as (sentinel, master):
        store = open_store(
            tmp_path / "repo",
            OURS,
            redis_type="redis_sentinel",
            sentinel_master=MASTER,
            connection_string=f"{HOST}:{sentinel}",
        )
        check(store, tmp_path / "repo")
        store.apply(definitions(tmp_path / "repo"))
        store.push("driver_push", driver_rows(3))
        pattern = keys_of(store.project, store.get_feature_view("driver_stats")).pattern
        with redis.Redis(host=HOST, port=master) as client:
            assert len(list(client.scan_iter(match=pattern))) == 3
