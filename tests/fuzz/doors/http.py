"""The door of the lookup service: requests over HTTP, to a real service over a real Postgres and a real Redis.

Valid requests are mutated in their path, query, headers and body. Whatever is sent, the answer is a document of what
was asked for, or a problem of a known kind; and a good request is answered as before.
"""

from __future__ import annotations

import ast
import http.client
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

from almanac.clock import utc_now
from almanac.pipeline import minutes
from serving_cache import lookup
from serving_cache.lookup.web import BODY_BYTES_MAX, PROBLEM_JSON
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.conftest import running_postgres, running_redis
from tests.fuzz.runner import ACCEPTED, MEBIBYTE, Verdict
from tests.generations import bucket_pipeline, grid_pipeline, list_pipeline, migrated, published_generation
from tests.lookups import declared, environment, running_lookup

NAMES = ("cells", "users", "lists", "nobody")
SLOW = 408
"""Status of a body that does not come within ten seconds: nobody waits for that here."""
BUSY_TRIES_MAX = 50
"""A store may miss its time limit on a busy machine: so often the same is asked again."""
FIRST = frozenset(
    {
        "unknown-path",
        "method",
        "long-address",
        "bad-query",
        "content-type",
        "large-body",
        "bad-body",
        "unknown-pipeline",
    }
)
"""Kinds of the first check: the request cannot be read as one about a pipeline."""
Sent = tuple[str, str, dict[str, str], bytes | None]
"""Method, path with query, headers, body."""


def kinds() -> frozenset[str]:
    """Every kind of problem that a request alone can bring about, as the service's code raises them."""
    found = set()
    for path in Path(lookup.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem"):
                continue
            status, kind = node.args[:2]
            if isinstance(status, ast.Constant) and (status.value >= 500 or status.value == SLOW):
                continue  # what the service's state brings about
            found |= {one.value for one in ast.walk(kind) if isinstance(one, ast.Constant) and type(one.value) is str}
    return frozenset(found)


def _json(value: Any) -> str:
    """A value as JSON; text such as `nested 983` stands for so many lists within lists, which no writer could write."""
    return re.sub(r'"nested (\d+)"', lambda found: "[" * int(found[1]) + "]" * int(found[1]), json.dumps(value))


def _strange(random: Random) -> Any:
    return random.choice(
        [None, True, "", "\ud800", "\x00", "\x1b[2J", "é" * 300, "a" * 9_000, -1, 10**30, 10**300, 1e308, 17.5, 17.0,
         {}, [], [[]], f"nested {random.randrange(1_100)}", {"a": "nested 983"}, "1e999", "NaN", "9" * 100, "١٧", "17"]
    )  # fmt: skip


def _entity(random: Random, name: str) -> Any:
    if random.random() < 0.15:
        return _strange(random)
    return random.randrange(70) if name == "cells" else f"user-{random.randrange(50)}é"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else _json(value)
    return quote(text.encode("utf-8", "surrogatepass"), safe="")[:3_000]


def _query(random: Random, name: str) -> list[tuple[str, Any]]:
    fields: list[tuple[str, Any]] = []
    if random.random() < 0.4:
        fields.append(("max_stale", random.choice(["0", "90m", "PT1H", "1d", "86400", "-1", "x", "1e9", 5])))
    if name == "lists" or random.random() < 0.1:
        fields += random.sample(
            [("limit", "2"), ("exclude", "a,b"), ("filter", "price<3"), ("limit", "0"), ("exclude", '"a'),
             ("filter", "price<"), ("filter", "other=1")], random.randrange(3),
        )  # fmt: skip
    if random.random() < 0.1:
        fields.append((random.choice(["max_stale", "limit", "exclude", "other"]), _strange(random)))
    return fields


def _get(random: Random) -> Sent:
    name = random.choice(NAMES)
    if random.random() < 0.15:
        path = random.choice(
            ["/", "/livez", "/openapi.json", "/v1/pipelines", f"/v1/pipelines/{name}", "/v2", "/v1/x/y"]
        )
        return (
            random.choice(["GET", "HEAD", "OPTIONS", "DELETE"]),
            path,
            {"accept": random.choice(["*/*", "text/html"])},
            None,
        )
    if random.random() < 0.2:
        point = [("lat", random.choice(["50", "0", "x", "91"])), ("lon", random.choice(["10", "5.5", "NaN"]))]
        return "GET", f"/v1/{name}/point?" + "&".join(f"{field}={value}" for field, value in point), {}, None
    path = f"/v1/{name}/entities/{_text(_entity(random, name)) or 'a'}"
    text = "&".join(f"{field}={_text(value)}" for field, value in _query(random, name))
    if random.random() < 0.03:
        text = random.choice(["max_stale=%ff", "&".join("max_stale=1" for _ in range(20)), "max_stale=" + "1" * 4_200])
    headers = {"if-none-match": random.choice(["*", 'W/"x"', "," * 900])} if random.random() < 0.2 else {}
    return random.choice(["GET", "GET", "GET", "HEAD", "PUT"]), path + (f"?{text}" if text else ""), headers, None


def _post(random: Random) -> Sent:
    name = random.choice(NAMES)
    body: dict[str, Any] = {"entities": [_entity(random, name) for _ in range(random.choice([1, 2, 9, 300]))]}
    body |= dict(_query(random, name))
    kind = random.randrange(12)
    if kind == 0:
        body[random.choice(["entities", "max_stale", "limit", "exclude", "filter", "more"])] = _strange(random)
    elif kind == 1:
        body["entities"] = [_strange(random)] * random.choice([0, 1, 1_001])
    elif kind == 2:
        body["entities"] = ["a" * 900 + str(number) for number in range(1_000)]
    data = _json(body).encode()
    if kind == 3:
        at = random.randrange(len(data))
        data = data[:at] + random.randbytes(random.randrange(4)) + data[at + random.randrange(3) :]
    elif kind == 4 and random.random() < 0.1:
        data += b" " * BODY_BYTES_MAX
    headers = {"content-type": random.choice(["application/json"] * 9 + ["text/plain"])}
    return "POST", f"/v1/{name}/entities:lookup", headers, data


@dataclass
class Asking:
    """A service that is asked over one connection."""

    host: str
    port: int
    process: int
    bytes_before: int = 0

    def __post_init__(self) -> None:
        self._connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        self.bytes_before = _resident(self.process)

    def round(self, random: Random, count: int) -> Sequence[Verdict]:
        """Ask; then a good request must be answered as ever."""
        verdicts = [self._verdict(_post(random) if random.random() < 0.4 else _get(random)) for _ in range(count)]
        if self._verdict(("GET", "/v1/cells/entities/3", {}, None)).reason != ACCEPTED:
            raise AssertionError("a good request is answered no more")
        return verdicts

    def memory_bytes(self) -> int:
        """By how much the service has grown."""
        return _resident(self.process) - self.bytes_before

    def _verdict(self, sent: Sent) -> Verdict:
        for _ in range(BUSY_TRIES_MAX):
            status, kind = self._answer(sent)
            if kind != "no-place":
                break
        if status < 400:
            return Verdict(ACCEPTED, past_first_check=True)
        if status >= 500 and kind != "refused":
            raise AssertionError(f"{status} {kind}: {sent!r}"[:2_000])
        return Verdict(kind, past_first_check=kind not in FIRST)

    def _answer(self, sent: Sent, tries: int = 3) -> tuple[int, str]:
        method, path, headers, body = sent
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            data = response.read()
        except (ConnectionError, http.client.HTTPException):
            self._connection.close()  # the one before, or this one, was answered before all of it was sent
            if body is not None and len(body) > BODY_BYTES_MAX:
                return 413, "large-body"
            if tries == 1:
                raise
            return self._answer(sent, tries - 1)
        if response.status < 400:
            return response.status, ACCEPTED
        if method == "HEAD":
            return self._answer(("GET", path, headers, body))
        if response.headers["content-type"] != PROBLEM_JSON:
            raise AssertionError(f"{response.status} without a problem: {sent!r}"[:2_000])
        problem = json.loads(data)
        if "Traceback" in problem["detail"] or problem["status"] != response.status:
            raise AssertionError(f"{problem}: {sent!r}"[:2_000])
        return response.status, str(problem["type"]).removeprefix("urn:almanac:problem:")


def _resident(process: int) -> int:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _service() -> int:
    """The process that this one started the service as: see `tests.lookups`."""
    own = f"PPid:\t{os.getpid()}\n"
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if own in (path / "status").read_text() and b"tests.lookup_alone" in (path / "cmdline").read_bytes():
                return int(path.name)
        except OSError:
            continue  # it has ended
    raise AssertionError("the lookup service has no process")


class Http:
    """The service with a grid, users and lists."""

    reasons = kinds()
    memory_bytes_max = 256 * MEBIBYTE

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Asking]:
        """Servers, a generation of each pipeline, and the service."""
        (folder / "redis").mkdir()
        with running_postgres(folder / "postgres") as postgres, running_redis(folder / "redis") as redis:
            made = [grid_pipeline("cells"), bucket_pipeline("users"), list_pipeline("lists")]
            migrated(postgres, *made)
            with PostgresStore(postgres) as record, RedisStore(redis) as copy:
                for pipeline in made:
                    published_generation(record, pipeline, 280.0, utc_now() - minutes(5))
                    sync_redis(pipeline, record, copy)
            file = declared(
                folder,
                'cells = grid_pipeline("cells")',
                'users = bucket_pipeline("users")',
                'lists = list_pipeline("lists")',
            )
            variables = environment(folder, file, postgres=postgres, redis=redis)
            with running_lookup(variables, folder / "lookup.log") as client:
                yield Asking(client.base_url.host, client.base_url.port or 0, _service())


DOOR = Http()
