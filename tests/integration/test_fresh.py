"""Fresh computation through the running service, on real Redis and Postgres: when it answers, and when it cannot."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis

from almanac.clock import format_time, parse_time, utc_now
from almanac.pipeline import Fresh, Pipeline
from almanac.stack.servers import running_redis
from features.online_reading import PLAN_TABLE, Plan, encode_plan, plan_key
from serving_cache.postgres import PostgresStore
from serving_cache.records import OverlayRecord
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.fresh import plan_for, put_features, put_plan, register_model
from tests.generations import grid_pipeline, migrated, new_name, overlay_of, published_generation
from tests.lookups import declared, environment, running_lookup, unused_port

WAIT_SECONDS_MAX = 30
FRESH = Fresh(deadline=timedelta(seconds=20))  # long enough for any machine
TEN = timedelta(minutes=10)
MODEL = "weather-v1"


@dataclass(frozen=True)
class Served:
    """A running service and four pipelines with one set of features.

    The generation of `grid` is 20 minutes old; those of `old` and `hurried` have expired; `new` has none.
    """

    client: httpx.Client
    grid: Pipeline
    old: Pipeline
    new: Pipeline
    hurried: Pipeline
    plan: Plan
    postgres: PostgresStore
    redis_url: str
    variables: dict[str, str]
    model_file: Path

    def ask(self, pipeline: Pipeline, cell: int, query: str = "") -> httpx.Response:
        return self.client.get(f"/v1/{pipeline.name}/entities/{cell}{query}")

    def answer(self, pipeline: Pipeline, cell: int, query: str = "") -> dict[str, Any]:
        """An answer: on a busy machine a store may miss its time limit now and then."""
        return dict(eventually(lambda: (found := self.ask(pipeline, cell, query)).status_code == 200 and found.json()))

    def refuses(self, pipeline: Pipeline, cell: int, told: str, query: str = "") -> None:
        """A refusal that says so much; the other one that there may be is of a store that is late."""
        refused = eventually(lambda: told in (found := self.ask(pipeline, cell, query)).text and found)
        assert refused.status_code == 503
        assert "outputs" not in refused.json()

    def put(self, cell: int, age: timedelta, **values: Any) -> datetime:
        at = utc_now().replace(microsecond=0) - age
        put_features(self.redis_url, self.plan, cell, at, **values)
        return at

    def recorded(self, pipeline: Pipeline, cell: int) -> list[OverlayRecord]:
        long_ago = utc_now() - timedelta(days=300)
        return [r for r in self.postgres.overlays(pipeline.name, MODEL, long_ago) if r.entity == str(cell)]

    def copied(self, pipeline: Pipeline, cell: int) -> dict[str, OverlayRecord]:
        with RedisStore(self.redis_url) as store:
            return store.overlays(pipeline.name, str(cell))

    def written_back(self, pipeline: Pipeline, cell: int) -> OverlayRecord:
        """The overlay, once it is in Postgres and Redis."""
        eventually(lambda: self.copied(pipeline, cell))
        (record,) = self.recorded(pipeline, cell)
        assert self.copied(pipeline, cell) == {MODEL: record}
        return record


def eventually(what: Callable[[], Any]) -> Any:
    give_up_at = time.monotonic() + WAIT_SECONDS_MAX
    while not (found := what()):
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    return found


def eventually_from(served: Served, pipeline: Pipeline, cell: int, place: str) -> dict[str, Any]:
    """An answer from a place: on a busy machine a store may miss its time limit now and then."""
    return dict(eventually(lambda: (found := served.answer(pipeline, cell))["place"] == place and found))


@contextmanager
def serving(
    folder: Path, postgres_url: str, redis_url: str, harm: Callable[[Path], Any] = str, **settings: str
) -> Iterator[Served]:
    service = new_name()
    kinds = {kind: grid_pipeline(features=service, fresh=FRESH) for kind in ("grid", "old", "new", "hurried")}
    patience = "fresh=Fresh(deadline=timedelta(seconds=20))"
    haste = 'fresh=Fresh(deadline=timedelta(microseconds=1)), default={"t2m_1h": 1.0, "t2m_6h": 2.0}'
    lines = [
        f'{kind} = grid_pipeline("{found.name}", features="{service}", {haste if kind == "hurried" else patience})'
        for kind, found in kinds.items()
    ]
    migrated(postgres_url, *kinds.values())
    plan = plan_for(kinds["grid"])
    with ExitStack() as stack:
        postgres = stack.enter_context(PostgresStore(postgres_url))
        put_plan(redis_url, plan)
        with RedisStore(redis_url) as cache:
            for kind, age in (("grid", 1 / 3), ("old", 26), ("hurried", 26)):
                published_generation(postgres, kinds[kind], 280.0, utc_now() - timedelta(hours=age))
                sync_redis(kinds[kind], postgres, cache)
        version = register_model(folder / "state" / "models", kinds["grid"]).path
        harm(version)
        file = declared(folder, *lines)
        variables = environment(folder, file, **{"postgres": postgres_url, "redis": redis_url, **settings})
        client = stack.enter_context(running_lookup(variables, folder / "lookup.log"))
        client.timeout = httpx.Timeout(60)
        yield Served(
            client,
            **kinds,
            plan=plan,
            postgres=postgres,
            redis_url=redis_url,
            variables=variables,
            model_file=version / "model.onnx",
        )


@pytest.fixture(scope="module")
def served(postgres_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("fresh"), postgres_url, redis_url) as found:
        yield found


def test_features_newer_than_an_expired_generation_answer_and_are_written_back_once(served: Served) -> None:
    at = served.put(1, TEN, t2m=285.0)
    found = served.answer(served.old, 1)
    told = ("source", "rung", "place", "verdict", "model", "generation", "epoch")
    assert [found[name] for name in told] == ["fresh", 2, None, "fresh", MODEL, 1, 1]
    assert parse_time(found["as_of"]) == at
    assert found["outputs"]["t2m_6h"]["value"] == 286.0  # 285 + 2 / 2
    assert parse_time(found["outputs"]["t2m_1h"]["valid_at"]) == at + timedelta(hours=1)
    assert found["reason"].endswith("the current generation (1) has expired: it is 26 h old")
    assert found["age_seconds"] >= 600
    record = served.written_back(served.old, 1)
    assert (record.is_fresh, record.as_of, record.values["t2m_1h"]) == (True, at, 286.0)
    again = eventually_from(served, served.old, 1, "redis")
    assert [again[name] for name in ("source", "rung", "reason")] == ["fresh", 1, None]
    assert [again[name] for name in ("as_of", "computed_at", "outputs")] == [
        found[name] for name in ("as_of", "computed_at", "outputs")
    ]
    assert served.recorded(served.old, 1) == [record]


def test_a_hundred_callers_at_once_write_one_prediction_back(served: Served) -> None:
    at = served.put(40, TEN, t2m=285.0)
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda _: served.answer(served.old, 40), range(100)))
    assert {(a["source"], a["as_of"], a["outputs"]["t2m_1h"]["value"]) for a in found} == {
        ("fresh", format_time(at), 286.0)
    }
    record = served.written_back(served.old, 40)
    with psycopg.connect(served.variables["ALMANAC_POSTGRES_URL"]) as connection:
        rows = connection.execute(
            "SELECT count(*), min(computed_at) FROM overlay WHERE pipeline = %s AND entity = '40'", (served.old.name,)
        ).fetchone()
    assert rows == (1, record.computed_at)
    assert format_time(record.computed_at) == min(answer["computed_at"] for answer in found)


def test_an_event_of_the_stream_wins_afterwards_with_the_same_as_of(served: Served) -> None:
    at = served.put(2, TEN)
    assert served.answer(served.old, 2)["source"] == "fresh"
    served.written_back(served.old, 2)
    stream = overlay_of("2", at, 0, values={"t2m_1h": 290.0, "t2m_6h": 291.0})
    with RedisStore(served.redis_url) as cache:
        assert [store.put_overlays(served.old.name, [stream]) for store in (served.postgres, cache)] == [1, 1]
    found = served.answer(served.old, 2)
    assert (found["source"], found["outputs"]["t2m_1h"]["value"]) == ("stream", 290.0)


def test_max_stale_asks_for_newer_features(served: Served) -> None:
    served.put(3, timedelta(minutes=1), t2m=270.0)
    assert served.answer(served.grid, 3)["source"] == "batch"  # stale is no reason to compute
    found = served.answer(served.grid, 3, "?max_stale=5m")
    assert (found["source"], found["outputs"]["t2m_1h"]["value"]) == ("fresh", 271.0)
    assert "older than max_stale of 5 min" in found["reason"]
    assert served.ask(served.grid, 3, "?max_stale=10s").status_code == 503


def test_features_no_newer_than_the_generation_are_not_computed_with(served: Served) -> None:
    served.put(4, timedelta(minutes=30))
    told = "fresh computation: the online features, 30 min old, are no newer than what there is"
    served.refuses(served.grid, 4, told, "?max_stale=5m")
    assert served.recorded(served.grid, 4) == []


@pytest.mark.parametrize(
    ("cell", "age", "values", "reason"),
    [
        (5, timedelta(hours=7), {}, "no usable online features: seen has expired (7 h"),
        (6, TEN, {"history_at": utc_now() - timedelta(hours=7)}, "no usable online features: history has expired (7 h"),
        (7, TEN, {"lag_1h": None}, "no usable online features: lag_1h null"),
        (8, TEN, {"lag_1h": float("nan")}, "no usable online features: lag_1h null"),
        (9, None, {}, "no usable online features: seen is missing, history is missing, position is missing"),
    ],
)
def test_what_cannot_be_computed_goes_on_down_the_ladder_with_the_reason(
    served: Served, cell: int, age: timedelta | None, values: dict[str, Any], reason: str
) -> None:
    if age is not None:
        served.put(cell, age, **values)
    served.refuses(served.old, cell, f"fresh computation: {reason}")
    assert served.copied(served.old, cell) == {}


def test_many_are_computed_in_one_batch_and_one_bad_cell_spoils_no_other(served: Served) -> None:
    cells = list(range(10, 30))
    for cell in cells:
        served.put(cell, TEN, t2m=260.0 + cell, **({"lag_1h": None} if cell == 13 else {}))
    body = {"entities": cells}
    found = served.client.post(f"/v1/{served.old.name}/entities:lookup", json=body).json()
    assert [a["entity"] for a in found["answers"]] == [cell for cell in cells if cell != 13]
    assert {a["source"] for a in found["answers"]} == {"fresh"}
    assert all(a["outputs"]["t2m_1h"]["value"] == 261.0 + a["entity"] for a in found["answers"])
    (refusal,) = found["refusals"]
    assert (refusal["entity"], refusal["status"]) == (13, 503)
    assert served.written_back(served.old, 29).as_of == parse_time(found["answers"][-1]["as_of"])


def test_without_a_generation_the_aliased_model_answers(served: Served) -> None:
    served.put(31, TEN)
    found = served.answer(served.new, 31)
    assert [found[name] for name in ("source", "rung", "model", "generation", "epoch")] == ["fresh", 2, MODEL, None, 0]
    assert found["reason"].endswith("no generation is published yet")


def test_a_deadline_that_passes_goes_on_down_the_ladder(served: Served) -> None:
    served.put(32, TEN)
    found = served.answer(served.hurried, 32)
    assert (found["source"], found["rung"]) == ("default", 4)
    assert "; fresh computation: " in found["reason"]


def test_definitions_applied_meanwhile_are_followed(served: Served) -> None:
    served.put(33, TEN, t2m=285.0)
    unreadable = encode_plan(served.plan).replace(b'"version":2', b'"version":3')
    with redis.Redis.from_url(served.redis_url) as raw:
        try:
            raw.set(plan_key(served.plan.service), unreadable)
            told = "fresh computation: the reading plan is of version 3 and layout packed-1"
            served.refuses(served.old, 33, told)
        finally:
            put_plan(served.redis_url, served.plan)
    assert served.answer(served.old, 33)["source"] == "fresh"


def test_redis_down_is_a_reason_and_postgres_still_answers(postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with running_redis(tmp_path / "redis") as url:
        dead = f"redis://127.0.0.1:{unused_port()}"
        with serving(tmp_path, postgres_url, url, redis=dead) as served:
            eventually_from(served, served.grid, 1, "postgres")
            served.refuses(served.old, 1, "fresh computation: redis cannot be reached")
            served.refuses(served.old, 1, "ask again in a moment")
            found = served.answer(served.hurried, 1)
            assert (found["source"], found["place"]) == ("default", None)


def test_postgres_down_answers_fresh_and_leaves_redis_as_it_can_be_rebuilt(postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with running_redis(tmp_path / "redis") as url:
        dead = f"postgresql://almanac:none@127.0.0.1:{unused_port()}/almanac"
        with serving(tmp_path, postgres_url, url, postgres=dead) as served:
            served.put(1, TEN)
            for _ in range(3):
                found = served.answer(served.old, 1)
                assert (found["source"], found["rung"]) == ("fresh", 2)
            assert served.copied(served.old, 1) == {}
    assert "fresh predictions are not written back: Postgres at 127.0.0.1" in (tmp_path / "lookup.log").read_text()


def test_a_plan_that_redis_lost_is_read_from_postgres(postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with running_redis(tmp_path / "redis") as url, serving(tmp_path, postgres_url, url) as served:
        served.put(1, TEN)
        with redis.Redis.from_url(url) as raw:
            raw.delete(plan_key(served.plan.service))
        served.refuses(served.old, 1, f"there is no reading plan of {served.plan.service}")
        with psycopg.connect(postgres_url) as connection:
            connection.execute("CREATE SCHEMA IF NOT EXISTS feast")
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS feast.{PLAN_TABLE} (service text PRIMARY KEY, plan text NOT NULL)"
            )
            connection.execute(
                f"INSERT INTO feast.{PLAN_TABLE} VALUES (%s, %s)",
                (served.plan.service, encode_plan(served.plan).decode()),
            )
        eventually(lambda: served.ask(served.old, 1).json().get("source") == "fresh")


def test_an_altered_model_is_a_reason_and_the_rest_goes_on(postgres_url: str, redis_url: str, tmp_path: Path) -> None:
    def alter(version: Path) -> None:
        (version / "model.onnx").write_bytes(b"x")

    with serving(tmp_path, postgres_url, redis_url, harm=alter) as served:
        served.put(34, TEN)
        served.refuses(served.old, 34, "fresh computation: model weather-v1: model.onnx")
        assert served.answer(served.grid, 34)["source"] == "batch"


def test_a_rollback_computes_with_the_generations_own_model(served: Served) -> None:
    """The alias may have moved on: what answers is the model that the generation vouches for."""
    other = overlay_of("35", utc_now(), 1, model="weather-v7")
    with RedisStore(served.redis_url) as cache:
        cache.put_overlays(served.old.name, [other])
    served.put(35, TEN)
    found = served.answer(served.old, 35)
    assert (found["source"], found["model"]) == ("fresh", MODEL)
    assert "is newer, but by weather-v7, the current generation by weather-v1" in found["reason"]


def test_the_command_line_shows_what_was_computed_afresh(served: Served) -> None:
    served.put(36, TEN, t2m=285.0)
    done = subprocess.run(
        [sys.executable, "-m", "almanac.cli", "lookup", served.old.name, "36"],
        env={**served.variables, "ALMANAC_LOOKUP_URL": str(served.client.base_url)},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX * 2,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\b286\b.*\bfresh\b.*\b10 min\b.*\bfresh\b", done.stdout)
    assert "the current generation (1) has expired: it is 26 h old" in done.stdout


def test_what_was_computed_is_counted(served: Served) -> None:
    served.put(37, TEN)
    assert served.answer(served.old, 37)["source"] == "fresh"
    served.written_back(served.old, 37)
    text = served.client.get("/metrics").text
    name = served.old.name
    for sample in (
        f'almanac_fresh_computations_total{{outcome="answered",pipeline="{name}"}}',
        f'almanac_fresh_seconds_count{{outcome="answered",pipeline="{name}"}}',
        f'almanac_fresh_in_flight{{pipeline="{name}"}} 0.0',
        f'almanac_fresh_writes_total{{outcome="newer",pipeline="{name}"}}',
        f'almanac_lookup_requests_total{{interface="rest",pipeline="{name}",rung="2",verdict="fresh"}}',
        f'almanac_lookup_age_served_seconds_count{{pipeline="{name}",source="fresh"}}',
    ):
        assert sample in text, sample


def test_a_model_that_is_loaded_outlives_its_file(served: Served) -> None:
    served.put(38, TEN)
    assert served.answer(served.old, 38)["source"] == "fresh"
    served.model_file.write_bytes(b"swapped under a running service")
    served.put(39, TEN)
    assert served.answer(served.old, 39)["source"] == "fresh"
