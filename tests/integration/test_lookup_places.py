"""Keys of many digits, and entities that one request asks for at several places."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from almanac.clock import utc_now
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.generations import NUMBERED, grid_pipeline, migrated, new_name, numbered_pipeline, published_generation
from tests.lookups import declared, environment, running_lookup

Served = tuple[httpx.Client, dict[str, str]]


@pytest.fixture(scope="module")
def served(postgres_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A lookup over a grid and over entities whose keys are whole numbers; paths of their entities."""
    folder = tmp_path_factory.mktemp("places")
    grid, numbered = grid_pipeline(new_name()), numbered_pipeline(new_name())
    migrated(postgres_url, grid, numbered)
    with PostgresStore(postgres_url) as postgres, RedisStore(redis_url) as cache:
        for pipeline in (grid, numbered):
            published_generation(postgres, pipeline, 281.0, utc_now() - timedelta(minutes=20))
            sync_redis(pipeline, postgres, cache)
    lines = f'grid = grid_pipeline("{grid.name}")', f'numbered = numbered_pipeline("{numbered.name}")'
    found = environment(folder, declared(folder, *lines), postgres=postgres_url, redis=redis_url)
    with running_lookup(found, Path(folder) / "log") as client:
        yield client, {"grid": f"/v1/{grid.name}/entities", "numbered": f"/v1/{numbered.name}/entities"}


def test_keys_of_19_digits_are_answered_by_path_and_body_each_at_its_place(served: Served) -> None:
    client, paths = served
    path = paths["numbered"]
    for key in NUMBERED:
        for written in (str(key), f"{'-' if key < 0 else ''}00{abs(key)}"):
            assert client.get(f"{path}/{written}").json()["entity"] == key, written
    near = [key + step for key in NUMBERED for step in (-1, 1)]
    for key in near:
        assert client.get(f"{path}/{key}").status_code == 404, key
    asked = [*NUMBERED, *map(str, reversed(NUMBERED)), *near, NUMBERED[2], *near[:2]]
    found = client.post(f"{path}:lookup", json={"entities": asked}).json()
    assert [answer["entity"] for answer in found["answers"]] == [*NUMBERED, *reversed(NUMBERED), NUMBERED[2]]
    # What lies beyond 64 bits is no key; it stands in the place where it was asked for.
    assert [refusal["entity"] for refusal in found["refusals"]] == [
        key if -(2**63) < key < 2**63 else str(key) for key in [*near, *near[:2]]
    ]
    floats = client.post(f"{path}:lookup", content=b'{"entities": [17.0, 1.7e1, 9007199254740993.0]}').json()
    assert [answer["entity"] for answer in floats["answers"]] == [17, 17]
    assert ["2**53" in refusal["detail"] for refusal in floats["refusals"]] == [True]


def test_an_entity_asked_for_at_several_places_is_answered_at_each(served: Served) -> None:
    client, paths = served
    path = f"{paths['grid']}:lookup"
    found = client.post(path, json={"entities": [5, 64, 3, "5", 5.0, -1, 64, 3]}).json()
    assert [answer["entity"] for answer in found["answers"]] == [5, 3, 5, 5, 3]
    assert [refusal["entity"] for refusal in found["refusals"]] == [64, -1, 64]
    whole = client.post(path, json={"entities": [7] * 1000}).json()
    assert [answer["entity"] for answer in whole["answers"]] == [7] * 1000


HEADERS = b"Host: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\n" + HEADERS, b"414", b"urn:almanac:problem:long-address"),
        (b"GET /a%20b HTTP/1.1\r\n" + HEADERS, b"404", b"urn:almanac:problem:unknown-path"),
        (b"GET /" + b"a" * 65_600 + b" HTTP/1.1\r\n" + HEADERS, b"414", b""),
        (b"GET /a b HTTP/1.1\r\n" + HEADERS, b"400", b""),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n" + HEADERS, b"400", b""),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: 1\r\n" % n for n in range(200)) + HEADERS, b"431", b""),
    ],
    ids=["long path", "odd path", "longer path", "space", "length", "headers"],
)
def test_what_the_http_server_refuses_itself_has_a_status_and_no_body(
    served: Served, sent: bytes, status: bytes, said: bytes
) -> None:
    """Where a head can be read, the answer is a problem; docs/operations.md names what the server refuses before."""
    client, _ = served
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=5) as connection:
        connection.sendall(sent)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == status, answer[:300]
    assert said in body if said else body == b""
    assert client.get("/livez").status_code == 200


def test_a_pages_example_of_whole_number_keys_is_a_whole_number(served: Served) -> None:
    client, paths = served
    found = client.get("/").json()["pipelines"]
    examples = [path for one in found.values() for path in one["examples"]]
    assert f"{paths['numbered']}/17" in examples
    assert {client.get(path).status_code for path in examples} == {200}
