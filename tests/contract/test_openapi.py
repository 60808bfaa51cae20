"""The committed OpenAPI document is the service's own, and the service keeps to it under any request."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from html import unescape
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

from almanac.clock import utc_now
from almanac.errors import UsageError
from serving_cache.lookup.openapi import document, document_bytes
from serving_cache.lookup.parsing import max_stale
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.generations import bucket_pipeline, grid_pipeline, list_pipeline, migrated, new_name, published_generation
from tests.lookups import ROOT, declared, environment, running_lookup

EXAMPLES = 40
QUIET = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)

OPERATIONS = [found.ok() for found in schemathesis.openapi.from_dict(document()).get_all_operations()]
# Methods that a path does not have are tried below, one by one; a refusal is a documented 503.
EXCLUDED = [unsupported_method, not_a_server_error]


@dataclass(frozen=True)
class Served:
    client: httpx.Client
    names: tuple[str, str, str]
    """Of a grid, of users with numbers, and of users with lists."""

    def path(self, text: str) -> str:
        """A path with the names in it."""
        for word, name in zip(("{grid}", "{users}", "{lists}"), self.names, strict=True):
            text = text.replace(word, name)
        return text


@pytest.fixture(scope="module")
def served(postgres_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("openapi")
    grid, users, lists = grid_pipeline(new_name()), bucket_pipeline(new_name()), list_pipeline(new_name())
    migrated(postgres_url, grid, users, lists)
    with PostgresStore(postgres_url) as postgres, RedisStore(redis_url) as cache:
        for pipeline in (grid, users, lists):
            published_generation(postgres, pipeline, 281.0, utc_now() - timedelta(minutes=20))
            sync_redis(pipeline, postgres, cache)
    file = declared(
        folder,
        f'grid = grid_pipeline("{grid.name}")',
        f'users = bucket_pipeline("{users.name}")',
        f'lists = list_pipeline("{lists.name}")',
    )
    with running_lookup(environment(folder, file, postgres=postgres_url, redis=redis_url), folder / "log") as client:
        yield Served(client, (grid.name, users.name, lists.name))


def test_the_committed_document_is_the_services_own(served: Served) -> None:
    committed = (ROOT / "docs" / "openapi.json").read_bytes()
    assert committed == document_bytes(), "run `python -m serving_cache.lookup.openapi > docs/openapi.json`"
    assert served.client.get("/openapi.json").content == committed


CASES = [
    pytest.param(operation, mode, id=f"{mode.value} {operation.label}")
    for operation in OPERATIONS
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    # A request that only names a pipeline cannot be malformed.
    if mode is GenerationMode.POSITIVE or ("{name}/" in operation.path and operation.method != "options")
]


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_any_request_is_answered_as_documented(served: Served, operation: Any, mode: GenerationMode) -> None:
    @given(operation.as_strategy(generation_mode=mode), st.sampled_from([None, *served.names]))
    @QUIET
    def check(case: Any, name: str | None) -> None:
        if name is not None and "name" in (case.path_parameters or {}):
            case.path_parameters["name"] = name
        # How long a list may be and what to filter by is the declaration's: one document cannot say it for all.
        # A pattern cannot say that a duration reaches to ten years: its text does.
        asked = {**(case.query or {}), **(case.body if isinstance(case.body, dict) else {})}
        far = beyond(asked.get("max_stale"))
        loose = name == served.names[2] or far
        excluded = [*EXCLUDED, positive_data_acceptance] if loose else EXCLUDED
        response = case.call_and_validate(base_url=str(served.client.base_url).rstrip("/"), excluded_checks=excluded)
        assert response.status_code in (200, 204, 400, 404, 503)

    check()


def beyond(text: Any) -> bool:
    """Whether it is a duration, and one of more than ten years."""
    try:
        max_stale(text)
    except UsageError as error:
        return "days" in str(error)
    return False


TYPED = [
    ("GET", "/?x=1", 400),
    ("GET", "/index.html", 404),
    ("GET", "/v1/{grid}/entities", 404),
    ("GET", "/wp-login.php", 404),
    ("OPTIONS", "/nowhere", 404),
    ("PUT", "/", 405),
    ("GET", "/metrics?x=1", 400),
    ("GET", "/v1", 404),
    ("GET", "//livez", 404),
    ("GET", "/livez/", 404),
    ("GET", "/livez?x=1", 400),
    ("GET", "/v1/nothing/entities/1", 404),
    ("GET", "/v1/../etc/passwd", 404),
    ("GET", "/v1/%2e%2e/entities/1", 404),
    ("GET", "/v1/wetter☃/entities/1", 404),
    ("GET", "/v1/{grid}/entities/", 404),
    ("GET", "/v1/{grid}/entities/64", 404),
    ("GET", "/v1/{grid}/entities/-1", 404),
    ("GET", "/v1/{grid}/entities/1.5", 404),
    ("GET", "/v1/{grid}/entities/NaN", 404),
    ("GET", "/v1/{grid}/entities/%00", 404),
    ("GET", "/v1/{grid}/entities/%ff%fe", 404),
    ("GET", "/v1/{grid}/entities/" + "9" * 2000, 404),
    ("GET", "/v1/{grid}/entities/" + "9" * 5000, 414),
    ("GET", "/v1/{grid}/entities/１７", 404),
    ("GET", "/v1/{grid}/entities/1?max_stale=", 400),
    ("GET", "/v1/{grid}/entities/1?max_stale=soon", 400),
    ("GET", "/v1/{grid}/entities/1?max_stale=-1", 400),
    ("GET", "/v1/{grid}/entities/1?max_stale=NaN", 400),
    ("GET", "/v1/{grid}/entities/1?max_stale=1e400", 400),
    ("GET", "/v1/{grid}/entities/1?max_stale=" + "9" * 3000, 400),
    ("GET", "/v1/{grid}/entities/1?max_stale=1&max_stale=2", 400),
    ("GET", "/v1/{grid}/entities/1?maxstale=1", 400),
    ("GET", "/v1/{grid}/entities/1?max_stale=%ff", 400),
    ("GET", "/v1/{grid}/entities/1?" + "a" * 5000, 414),
    ("GET", "/v1/{grid}/point", 400),
    ("GET", "/v1/{grid}/point?lat=57", 400),
    ("GET", "/v1/{grid}/point?lat=57&lon=x", 400),
    ("GET", "/v1/{grid}/point?lat=nan&lon=-9", 400),
    ("GET", "/v1/{grid}/point?lat=1e999&lon=-9", 400),
    ("GET", "/v1/{grid}/point?lat=91&lon=-9", 400),
    ("GET", "/v1/{grid}/point?lat=0&lon=0", 404),
    ("GET", "/v1/{users}/point?lat=57&lon=-9", 404),
    ("GET", "/v1/{users}/entities/nobody", 404),
    ("GET", "/v1/{users}/entities/" + "x" * 257, 404),
    ("GET", "/v1/pipelines/nothing", 404),
    ("GET", "/v1/{users}/entities/user-1?limit=3", 404),
    ("GET", "/v1/{lists}/entities/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
    ("GET", "/v1/{lists}/entities/a%0d%0aX-Other:%201", 404),
    ("GET", "/v1/{lists}/entities/%f0%9f%8e%81", 404),
    ("GET", "/v1/{lists}/entities/%00", 404),
    ("GET", "/v1/{lists}/entities/caf%e9", 404),
    ("GET", "/v1/{lists}/entities/" + "x" * 10_000, 414),
    *(
        (("GET", "/v1/{lists}/entities/user-3%C3%A9?" + query, 400))
        for query in (
            "limit=",
            "limit=0",
            "limit=-1",
            "limit=4",
            "limit=1000000",
            "limit=abc",
            "limit=2.0",
            "limit=1&limit=2",
            "exclude=a,,b",
            "exclude=%22a",
            "exclude=%ff",
            "exclude=a&exclude=b",
            "filter=colour=red",
            "filter=price",
            "filter=price%3Cnan",
            "filter=price%3C1%20or%201=1",
            "filter=price%3C",
            "filter=price%3C1;DROP%20TABLE%20x",
            "filter=price%3C%00",
            "filter=price%3C1&sort=price",
        )
    ),
    ("GET", "/v1/{lists}/entities/user-3%C3%A9?exclude=" + ",".join(["item"] * 10_000), 414),
    ("POST", "/v1/{grid}/entities/1", 405),
    ("DELETE", "/v1/{grid}/point", 405),
    ("GET", "/v1/{grid}/entities:lookup", 405),
    ("BREW", "/livez", 405),
]
BODIES = [
    b"", b"{", b"[]", b"null", b"17", b'"x"', b"\xff\xfe", b"{}", b'{"entities": []}', b'{"entities": {}}',
    b'{"entities": [null]}', b'{"entities": [true]}', b'{"entities": [[1]]}', b'{"entities": [NaN]}',
    b'{"entities": [1], "max_stale": -1}', b'{"entities": [1], "max_stale": "soon"}',
    b'{"entities": [1], "maxstale": 1}',
    b'{"entities": [1], "max_stale": 1e400}', b'{"entities": ["\\ud800"]}', b"[" * 100_000,
    b'{"entities": [' + b"1," * 1000 + b"1]}",
]  # fmt: skip


def is_problem(response: httpx.Response, status: int) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found = response.json()
    assert found["status"] == status
    assert found["type"].startswith("urn:almanac:problem:")
    assert 10 < len(found["detail"]) < 400
    assert "\n" not in found["detail"]
    assert "Traceback" not in response.text


@pytest.mark.parametrize(("method", "path", "status"), TYPED, ids=[f"{m} {p[:48]}" for m, p, _ in TYPED])
def test_odd_requests_get_one_clear_sentence(served: Served, method: str, path: str, status: int) -> None:
    path = served.path(path)
    raw = httpx.URL(str(served.client.base_url)).copy_with(raw_path=path.encode("utf-8") if path.isascii() else b"/")
    response = served.client.request(method, raw if path.isascii() else path)
    is_problem(response, status)
    assert status != 405 or response.headers["allow"]


@pytest.mark.parametrize("body", BODIES, ids=[repr(body[:40]) for body in BODIES])
def test_odd_bodies_get_one_clear_sentence(served: Served, body: bytes) -> None:
    is_problem(served.client.post(f"/v1/{served.names[0]}/entities:lookup", content=body), 400)


WISHES = [
    b'"limit": 0', b'"limit": "many"', b'"limit": 1.5', b'"limit": true', b'"limit": [1]', b'"exclude": 7',
    b'"exclude": {}', b'"exclude": [7]', b'"exclude": [""]', b'"exclude": [' + b'"x",' * 10_000 + b'"x"]',
    b'"filter": {}', b'"filter": ["price"]', b'"filter": ["price<1", null]', b'"filter": "price<Infinity"',
    b'"sort": "price"',
]  # fmt: skip


@pytest.mark.parametrize("wish", WISHES, ids=[repr(wish[:40]) for wish in WISHES])
def test_odd_wishes_of_many_lists_get_one_clear_sentence(served: Served, wish: bytes) -> None:
    body = b'{"entities": ["user-3\xc3\xa9"], ' + wish + b"}"
    is_problem(served.client.post(served.path("/v1/{lists}/entities:lookup"), content=body), 400)


def test_wishes_of_lists_are_met_alike_by_either_way_of_asking(served: Served) -> None:
    user, path = "user-3é", served.path("/v1/{lists}")
    asked = {"limit": 3, "exclude": "item 2é,never sold", "filter": "price>=0, price<100"}
    one = served.client.get(f"{path}/entities/{user}", params=asked)
    assert one.status_code == 200, one.text
    many = served.client.post(f"{path}/entities:lookup", json={"entities": [user, "nobody", user], **asked}).json()
    assert [answer["outputs"] for answer in many["answers"]] == [one.json()["outputs"]] * 2  # one for each place
    assert [(refused["entity"], refused["status"]) for refused in many["refusals"]] == [("nobody", 404)]
    assert [item["item"] for item in one.json()["outputs"]["score"]["items"]] == ["item 3é", "item 4é"]
    told = served.client.get(served.path("/v1/pipelines/{lists}")).json()["ranking"]
    assert told == {"item": "item_id", "length": 2, "kept": 3, "attributes": ["price"]}
    head = served.client.head(f"{path}/entities/{user}", params=asked)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", one.headers["etag"])


@pytest.mark.parametrize("number", ["1e400", "1" + "0" * 400, "-1" + "0" * 30, "1.5", "18446744073709551616"])
def test_huge_numbers_are_no_cells(served: Served, number: str) -> None:
    response = served.client.post(
        f"/v1/{served.names[0]}/entities:lookup", content=b'{"entities": [' + number.encode() + b"]}"
    )
    is_problem(response, response.status_code)
    assert response.status_code in (400, 404)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "/"])
def test_another_content_type_is_turned_away(served: Served, kind: str) -> None:
    path = f"/v1/{served.names[0]}/entities:lookup"
    headers = {"content-type": kind.encode()}
    is_problem(served.client.post(path, content=b'{"entities": [1]}', headers=headers), 415)
    for good in ("application/json; charset=utf-8", "application/vnd.x+json", "APPLICATION/JSON"):
        answer = served.client.post(path, content=b'{"entities": [1]}', headers={"content-type": good})
        assert answer.status_code == 200


@pytest.mark.parametrize("size", [2_000_000, 10_000_000])
def test_a_large_body_is_turned_away(served: Served, size: int) -> None:
    body = json.dumps({"entities": ["x" * size]}).encode()
    path = f"/v1/{served.names[0]}/entities:lookup"
    is_problem(served.client.post(path, content=body), 413)
    is_problem(served.client.post(path, content=iter([body[:1_000_000], body[1_000_000:]])), 413)


@pytest.mark.parametrize(
    "text",
    [
        b"GET /livez\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /v1/\xff\xfe/entities/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 600_000 + b"\r\n\r\n",
    ],
)
def test_what_is_not_http_harms_nobody(served: Served, text: bytes) -> None:
    url = served.client.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=5) as connection:
        try:
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        except OSError:  # it hung up on us
            answer = b""
    assert b"Traceback" not in answer
    assert served.client.get("/livez").status_code == 200


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


def test_a_browser_gets_a_page_whose_links_all_answer(served: Served) -> None:
    page = served.client.get("/", headers={"accept": BROWSER})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "<script" not in page.text
    links = [unescape(link) for link in re.findall(r'href="(/[^"]*)"', page.text)]
    assert f"/v1/pipelines/{served.names[0]}" in links
    for link in links:
        answer = served.client.get(link)
        known = answer.status_code == 200 or (answer.status_code == 404 and "some-user_id" in link)
        assert known, f"{link}: {answer.text}"
    assert not re.findall(r'(?:src|href)="(?!/|data:,)', page.text)  # nothing from elsewhere


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (BROWSER, "text/html; charset=utf-8"),
        ("text/html;q=0.5, application/json", "application/json"),
        ("text/html;q=0", "application/json"),
        ("text/html;q=x", "application/json"),
        ("*/*", "application/json"),
        ("", "application/json"),
    ],
)
def test_the_first_page_is_json_for_programs(served: Served, accept: str, kind: str) -> None:
    found = served.client.get("/", headers={"accept": accept})
    assert (found.status_code, found.headers["content-type"], found.headers["vary"]) == (200, kind, "accept")
    if kind == "application/json":
        assert served.client.get(found.json()["pipelines"][served.names[0]]["examples"][0]).status_code == 200


def test_what_browsers_and_proxies_ask_besides(served: Served) -> None:
    icon = served.client.get("/favicon.ico")
    assert (icon.status_code, icon.content) == (204, b"")
    options = served.client.options(f"/v1/{served.names[0]}/entities:lookup")
    assert (options.status_code, options.headers["allow"], options.content) == (204, "POST, OPTIONS", b"")
    assert served.client.options("/livez").headers["allow"] == "GET, HEAD, OPTIONS"
    head = served.client.head("/", headers={"accept": BROWSER})
    assert (head.status_code, head.content) == (200, b"")
    lost = served.client.get("/v1/nowhere", headers={"accept": BROWSER})
    assert "GET /v1/{name}/entities/{entity}" in lost.json()["routes"]


def test_metrics_say_what_was_answered(served: Served) -> None:
    path = f"/v1/{served.names[0]}/entities/3"
    assert served.client.get(path).status_code == 200
    assert served.client.get(f"{path}?max_stale=1").status_code == 503
    assert served.client.get("/v1/nothing/entities/3").status_code == 404
    found = served.client.get("/metrics")
    assert found.headers["content-type"].startswith("text/plain")
    text, name = found.text, served.names[0]
    labels = f'interface="rest",pipeline="{name}"'
    assert f'almanac_lookup_requests_total{{{labels},rung="1",verdict="fresh"}}' in text
    assert f'almanac_lookup_requests_total{{{labels},rung="refused",verdict="none"}}' in text
    assert f'almanac_lookup_errors_total{{{labels},status="503"}}' in text
    assert 'almanac_lookup_errors_total{interface="rest",pipeline="",status="404"}' in text
    assert f"almanac_lookup_request_seconds_count{{{labels}}}" in text
    assert f'almanac_lookup_age_served_seconds_bucket{{le="3600.0",pipeline="{name}",source="batch"}}' in text
    assert 'almanac_ready{process="lookup"} 1.0' in text
    openmetrics = served.client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")


def test_a_trace_is_in_the_problem(served: Served) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    path = f"/v1/{served.names[0]}/entities/3?max_stale=1"
    refused = served.client.get(path, headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    assert refused.json()["trace"] == trace
    assert "trace" not in served.client.get(path).json()
    assert served.client.get(path, headers={"traceparent": "x" * 5000}).json()["trace"] != trace
