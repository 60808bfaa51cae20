"""The benchmarks work: a small world on the session's servers, each of ours once. Nothing is measured here."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from almanac.errors import StackError
from almanac.settings import load_settings
from almanac.stack.server import free_port
from benchmarks import answer, batch, batch_shop, features_historical, features_sdk, lookup, shop_world, stream
from benchmarks.features_parts import Bench
from benchmarks.load import drive
from benchmarks.measuring import Cores, Options
from benchmarks.reference import World, make_world
from benchmarks.services import running_constant, running_lookup

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

SECONDS = 0.1
EVENTS = 600


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, postgres_url: str, redis_url: str, kafka_bootstrap: str) -> World:
    folder = tmp_path_factory.mktemp("bench")
    settings = load_settings(
        state_dir=folder, cache_dir=folder / "cache", postgres_url=postgres_url, redis_url=redis_url,
        kafka_bootstrap=kafka_bootstrap,
    )  # fmt: skip
    made = make_world(settings, 500, trees=3)
    answer.prepare(made)  # a batch run for an hour of the past, and features online
    return made


def test_batch(world: World) -> None:
    found = batch.Job(world).run(answer.old_hour(world))  # not later: the test of fresh answers needs an old one
    assert set(found["stages"]) == {*batch.STAGES, *batch.GATES}
    assert all(seconds >= 0 for seconds in found["stages"].values())
    assert 0 < found["rate_with_gates"] < found["rate"]
    floor = batch.Floor(world, world.grid.cells)
    assert floor.run()["rate"] > 0
    assert set(floor.means) == set(world.pipeline.output_names)
    assert all(size > 0 for size in batch.stored(world).values())
    with pytest.raises(Exception, match="the peer answers 0 on average"):
        batch.check_same(floor.means, dict.fromkeys(floor.means, 0))


def test_batch_that_ranks(tmp_path: Path, postgres_url: str, redis_url: str) -> None:
    settings = load_settings(state_dir=tmp_path, postgres_url=postgres_url, redis_url=redis_url)
    world = shop_world.make_shop(settings, 60, trees=2)
    floor = batch_shop.Floor(world, 20, 1)
    found = batch.Job(world, rows=world.entities, scoring="score_matrix").run(between=floor.turn)
    assert (found["scored"], found["stages"]["scoring"] > 0) == (world.entities, True)
    assert (floor.result()["turns"], floor.result()["candidates"]) == (len(floor.seconds), 50)
    batch_shop.check_published(world, floor.lists)
    key, (items, scores) = next(iter(floor.lists.items()))
    with pytest.raises(StackError, match=f"the published list of {key} is not what"):
        batch_shop.check_published(world, {key: (items[::-1], scores)})


def test_lookup(world: World) -> None:
    core = Cores.choose().measured
    with running_lookup(world, free_port(), core) as service:
        requests = lookup.our_requests(service.url, world)
        bodies = {
            kind: drive(service.url, requests[kind], connections=2, seconds=SECONDS).body_bytes for kind in lookup.KINDS
        }
        assert service.memory_mb() > 10
    assert bodies["hundred"] > 20 * bodies["one"]
    with running_constant(world, free_port(), core, (bodies["one"], bodies["hundred"])) as constant:
        for kind in ("one", "hundred"):
            load = drive(constant.url, lookup.our_requests(constant.url, world)[kind], connections=2, seconds=SECONDS)
            assert load.body_bytes == bodies[kind]
            assert 0 < load.p50_ms <= load.p99_ms


def test_stream(world: World) -> None:
    topic = stream.Topic(world, EVENTS)
    ours = stream.Ours(world, topic)
    floors = (stream.Scoring(world, topic).measure, stream.Transactions(world, topic).measure)
    for measure in (ours.worker, *floors, ours.overlays, ours.features):
        assert measure()["rate"] >= 0
    stream.check_once(world, EVENTS)
    with pytest.raises(Exception, match="not exactly once"):
        stream.check_once(world, EVENTS + 1)


def test_answer(world: World, tmp_path: Path) -> None:
    found = answer.Ours(world, Cores.choose(), SECONDS).run(2)
    assert found["computed"] >= 20
    assert answer.Floor(world, SECONDS).run()["rate"] > 0


def test_historical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_historical, "cold", lambda *_: {})  # processes of their own
    asked = Options(quick=True, rounds=1, peers=True, profile=False, rows=60)
    with ExitStack() as stack:
        bench = Bench(asked=asked, cores=Cores.choose(), folder=tmp_path, _stack=stack)
        found = features_historical.historical(bench, "small", 60, 10, 30)["small"]
    assert found["ratio_peer"] == pytest.approx(found["ours"] / found["peer"], rel=0.01)
    assert found["source_rows"] == 300


def test_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    monkeypatch.setattr(features_sdk, "SECONDS", SECONDS)
    asked = Options(quick=True, rounds=1, peers=True, profile=False, rows=150)
    with ExitStack() as stack:
        bench = Bench(asked=asked, cores=Cores.choose(), folder=tmp_path, _stack=stack)
        bench._settings = load_settings(state_dir=tmp_path, redis_url=redis_url)
        found = features_sdk.read_part(bench)
    for name in ("online_sdk_100", "online_sdk_1"):
        assert found[name]["ratio_peer"] == pytest.approx(found[name]["ours"] / found[name]["peer"], rel=0.01)
        assert found[name]["entities"] == 150
