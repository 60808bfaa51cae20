"""The lookup service on real stores: what it answers, from where, and what it says about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import quote

import httpx
import pytest

from almanac.clock import parse_time, utc_now
from almanac.pipeline import Pipeline
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.generations import (
    bucket_pipeline,
    grid_pipeline,
    migrated,
    new_name,
    overlay_of,
    published_generation,
    staged_parts,
    start_of,
)
from tests.lookups import cells_of, declared, environment, eventually, running_lookup


@dataclass(frozen=True)
class Served:
    """A running service and what it serves."""

    client: httpx.Client
    grid: Pipeline
    users: Pipeline
    empty: Pipeline
    postgres: PostgresStore
    redis: RedisStore
    began: datetime

    def path(self, cell: int, query: str = "") -> str:
        return f"/v1/{self.grid.name}/entities/{cell}{query}"


@pytest.fixture(scope="module")
def served(postgres_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two generations of a grid, one of users, one pipeline without any; read from Redis."""
    folder = tmp_path_factory.mktemp("lookup")
    names = [new_name() for _ in range(3)]
    grid, users, empty = (
        grid_pipeline(names[0]),
        bucket_pipeline(names[1], default={"t2m_1h": 1.0, "t2m_6h": 2.0}),
        grid_pipeline(names[2]),
    )
    migrated(postgres_url, grid, users, empty)
    now = utc_now()
    with PostgresStore(postgres_url) as postgres, RedisStore(redis_url) as redis:
        published_generation(postgres, grid, 280.0, now - timedelta(minutes=80))
        attempt = postgres.begin_generation(
            grid, start_of(grid, "second", now - timedelta(minutes=20), clock_shift=timedelta(hours=26)), now=now
        )
        postgres.stage(attempt, staged_parts(grid, 281.3, now - timedelta(minutes=20), range(1, 16)))
        postgres.quarantine(attempt, 0, "t2m_1h above 340")
        postgres.publish(attempt, grid, now=now)
        published_generation(postgres, users, 0.5, now - timedelta(minutes=20))
        for pipeline in (grid, users):
            sync_redis(pipeline, postgres, redis)
        file = declared(
            folder,
            f'grid = grid_pipeline("{grid.name}")',
            f'users = bucket_pipeline("{users.name}", default={{"t2m_1h": 1.0, "t2m_6h": 2.0}})',
            f'empty = grid_pipeline("{empty.name}")',
        )
        variables = environment(folder, file, postgres=postgres_url, redis=redis_url)
        with running_lookup(variables, folder / "lookup.log") as client:
            yield Served(client, grid, users, empty, postgres, redis, now)


def test_an_answer_says_all_of_it(served: Served) -> None:
    found = eventually(served.client, served.path(63), "redis")
    as_of = served.began - timedelta(minutes=20)
    assert parse_time(str(found["as_of"])) == as_of
    assert {name: found[name] for name in ("entity", "verdict", "source", "rung", "reason", "generation", "epoch")} == {
        "entity": 63, "verdict": "fresh", "source": "batch", "rung": 1, "reason": None, "generation": 2, "epoch": 2,
    }  # fmt: skip
    assert found["point"] == {"lat": 56.25, "lon": -8.25}
    assert found["model"] == "weather-v1"
    assert found["clock"] == "observations replayed: clock shifted by +26 h"
    output = found["outputs"]["t2m_1h"]  # type: ignore[index]
    assert output["value"] == 281.3
    assert parse_time(output["valid_at"]) == as_of + timedelta(hours=1)
    age = (utc_now() - as_of).total_seconds()
    assert age - 60 < float(str(found["age_seconds"])) <= age


def test_both_places_give_the_same_prediction(served: Served) -> None:
    body = {"entities": cells_of(served.grid)}
    from_redis = eventually_many(served, body, "redis")
    served.redis.clear(served.grid.name)
    try:
        from_postgres = served.client.post(f"/v1/{served.grid.name}/entities:lookup", json=body).json()
    finally:
        sync_redis(served.grid, served.postgres, served.redis)
    told = ("age_seconds", "place", "reason")
    assert {a["place"] for a in from_postgres["answers"]} == {"postgres"}
    assert f"redis holds nothing of {served.grid.name}" in from_postgres["answers"][0]["reason"]
    strip = [{k: v for k, v in a.items() if k not in told} for a in from_postgres["answers"]]
    assert strip == [{k: v for k, v in a.items() if k not in told} for a in from_redis["answers"]]


def eventually_many(served: Served, body: dict[str, object], place: str) -> dict[str, list[dict[str, object]]]:
    eventually(served.client, served.path(63), place)
    for _ in range(50):
        found = served.client.post(f"/v1/{served.grid.name}/entities:lookup", json=body).json()
        if {answer["place"] for answer in found["answers"]} == {place}:
            return dict(found)
    raise AssertionError(f"never answered from {place}")


def test_many_answers_are_of_one_epoch_and_name_the_rest(served: Served) -> None:
    body = {"entities": [1, 63, 1, 64, "x", 2.0, -1], "max_stale": "90m"}
    response = served.client.post(f"/v1/{served.grid.name}/entities:lookup", json=body)
    found = response.json()
    assert response.status_code == 200
    assert [answer["entity"] for answer in found["answers"]] == [1, 63, 1, 2]
    assert {answer["epoch"] for answer in found["answers"]} == {found["epoch"]}
    assert [(r["entity"], r["status"]) for r in found["refusals"]] == [(64, 404), ("x", 404), (-1, 404)]
    assert "0 to 63" in found["refusals"][0]["detail"]


def test_a_quarantined_partition_keeps_its_own_age_and_reason(served: Served) -> None:
    found = served.client.get(served.path(0)).json()
    assert found["generation"] == 2
    assert parse_time(found["as_of"]) == served.began - timedelta(minutes=80)
    assert "carried forward from generation 1: quarantined: t2m_1h above 340" in found["reason"]
    assert found["outputs"]["t2m_1h"]["verdict"] == "expired"
    assert found["outputs"]["t2m_1h"]["value"] is None
    assert found["outputs"]["t2m_6h"]["value"] == 280.0


def test_an_overlay_changes_its_cell_and_no_other(served: Served) -> None:
    fresh = overlay_of("42", utc_now(), 5, values={"t2m_1h": 290.5, "t2m_6h": 291.5})
    other = overlay_of("43", utc_now(), 6, model="weather-v9")
    for store in (served.postgres, served.redis):
        store.put_overlays(served.grid.name, [fresh, other])
    found = served.client.get(served.path(42)).json()
    assert (found["source"], found["outputs"]["t2m_1h"]["value"], found["verdict"]) == ("stream", 290.5, "fresh")
    neighbour = served.client.get(served.path(43)).json()
    assert (neighbour["source"], neighbour["outputs"]["t2m_1h"]["value"]) == ("batch", 281.3)
    said = f"the stream's prediction as of {other.as_of.isoformat().replace('+00:00', 'Z')} is newer, but by weather-v9"
    assert said in neighbour["reason"]


def test_max_stale_below_the_age_is_refused_without_a_prediction(served: Served) -> None:
    refused = served.client.get(served.path(63, "?max_stale=10m"))
    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/problem+json"
    assert int(refused.headers["retry-after"]) > 0
    assert "281" not in refused.text
    assert "older than max_stale of 10 min" in refused.json()["detail"]
    assert served.client.get(served.path(63, "?max_stale=2h")).status_code == 200
    many = served.client.post(f"/v1/{served.grid.name}/entities:lookup", json={"entities": [62, 63], "max_stale": 60})
    assert many.status_code == 503
    assert "281" not in many.text


def test_a_point_snaps_to_its_cell(served: Served) -> None:
    found = served.client.get(f"/v1/{served.grid.name}/point", params={"lat": 57.6, "lon": 350.6}).json()
    assert (found["entity"], found["point"]) == (18, {"lat": 57.5, "lon": -9.5})


def test_users_are_looked_up_by_text(served: Served) -> None:
    base = f"/v1/{served.users.name}/entities"
    known = served.client.get(f"{base}/user-3é").json()
    assert (known["entity"], known["point"], known["outputs"]["t2m_1h"]["value"]) == ("user-3é", None, 0.5)
    for key in ("a/b c", "über?", "%41", "100%", "🙂" * 64):
        found = served.client.get(f"{base}/{quote(key, safe='')}")
        assert found.status_code == 200, found.text
        assert (found.json()["entity"], found.json()["source"], found.json()["rung"]) == (key, "default", 4)
        assert found.json()["age_seconds"] is None
    assert served.client.get(f"{base}/nobody?max_stale=1d").status_code == 404


def test_without_a_generation_there_is_no_answer(served: Served) -> None:
    refused = served.client.get(f"/v1/{served.empty.name}/entities/3")
    assert refused.status_code == 503
    assert "no generation is published yet" in refused.json()["detail"]


def test_caches_are_told_the_truth(served: Served) -> None:
    response = served.client.get(served.path(63))
    control = response.headers["cache-control"]
    assert response.headers["age"] == "0"  # a cache counts from here, whether it adds Age or goes by Date alone
    assert int(response.headers["almanac-age"]) >= response.json()["age_seconds"]
    assert 0 < int(control.split("max-age=")[1].split(",")[0]) <= 2
    assert int(control.split("stale-if-error=")[1]) <= timedelta(minutes=40).total_seconds()
    unchanged = served.client.get(served.path(63), headers={"if-none-match": response.headers["etag"]})
    if unchanged.status_code == 200:  # another place answered
        assert unchanged.json()["place"] != response.json()["place"]
    else:
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert int(unchanged.headers["almanac-age"]) >= int(response.headers["almanac-age"])
    assert served.client.head(served.path(63)).headers["etag"].startswith('W/"')


def test_the_declarations_are_listed(served: Served) -> None:
    names = [found["name"] for found in served.client.get("/v1/pipelines").json()["pipelines"]]
    assert names == sorted([served.grid.name, served.users.name, served.empty.name])
    one = served.client.get(f"/v1/pipelines/{served.grid.name}").json()
    assert (one["current"]["generation"], one["current"]["previous"], one["grid"]["rows"]) == (2, 1, 8)
    none = served.client.get(f"/v1/pipelines/{served.empty.name}").json()
    assert (none["current"], none["reason"]) == (None, "no generation is published yet")


def test_ready_says_which_places_answer(served: Served) -> None:
    ready = served.client.get("/readyz")
    assert ready.status_code == 200
    assert set(ready.json()["places"]) == {"redis", "postgres"}
    assert ready.json()["places"]["postgres"] == "ok"
