"""The lookup service's pure parts: its clock, circuit breaker, parsing, router and numbers."""

from __future__ import annotations

import asyncio
import math
import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from almanac.errors import UsageError
from almanac.partitioning import Grid
from almanac.steady import STEP_HOLD, STEP_TOLERANCE, Clock
from serving_cache.lookup import parsing
from serving_cache.lookup.answers import shortest
from serving_cache.lookup.breaker import FAILURES_BEFORE_OPEN, OPEN_SECONDS, Breaker
from serving_cache.lookup.postgres_place import PostgresPlace
from serving_cache.lookup.web import Problem, Request, Response, Route, Router
from tests.generations import grid_pipeline

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
GRID = grid_pipeline("grid")


def after(seconds: float, step: float = 0.0) -> tuple[datetime, float]:
    """Both readings so long after the start, the wall clock having stepped."""
    return START + timedelta(seconds=seconds + step), 1000.0 + seconds


@given(st.lists(st.floats(0.001, 3600), min_size=1, max_size=30), st.floats(-5e-4, 5e-4))
def test_slow_drift_is_followed(pauses: list[float], drift: float) -> None:
    clock = Clock(*after(0))
    passed = 0.0
    for pause in pauses:
        passed += pause
        wall = START + timedelta(seconds=passed * (1 + drift))
        moment = clock.at(wall, 1000.0 + passed)
        assert (moment.now, moment.note) == (wall, None)


@given(st.floats(2.1, 1e6), st.sampled_from([-1, 1]), st.floats(0, 500))
def test_a_step_is_noticed_and_not_followed(size: float, sign: int, wait: float) -> None:
    clock = Clock(*after(0))
    clock.at(*after(10))
    for seconds in (11, 12 + wait):
        moment = clock.at(*after(seconds, sign * size))
        assert abs(moment.now - after(seconds)[0]) <= timedelta(microseconds=10)
        assert moment.note is not None
        assert "wall clock stepped" in moment.note


def test_a_step_that_stays_is_believed_in_the_end() -> None:
    clock = Clock(*after(0))
    assert clock.at(*after(1, 3600)).note is not None
    late = clock.at(*after(1 + STEP_HOLD.total_seconds(), 3600))
    assert (late.now, late.note) == (after(1 + STEP_HOLD.total_seconds(), 3600)[0], None)


def test_a_step_that_is_taken_back_is_forgotten() -> None:
    clock = Clock(*after(0))
    assert clock.at(*after(1, -3600)).note is not None
    back = clock.at(*after(2))
    assert (back.now, back.note) == (after(2)[0], None)


def test_a_small_correction_is_no_step() -> None:
    clock = Clock(*after(0))
    small = STEP_TOLERANCE.total_seconds() * 0.9
    assert clock.at(*after(1, -small)).note is None


def test_the_breaker_opens_lets_one_try_and_closes() -> None:
    breaker = Breaker()
    for failure in range(FAILURES_BEFORE_OPEN):
        assert breaker.allows(float(failure))
        breaker.failed("redis cannot be reached", float(failure))
    last = float(FAILURES_BEFORE_OPEN - 1)
    assert not breaker.allows(last + OPEN_SECONDS * 0.9)
    assert breaker.why == "redis cannot be reached"
    assert breaker.allows(last + OPEN_SECONDS)
    assert not breaker.allows(last + OPEN_SECONDS), "only one may try"
    assert breaker.succeeded()
    assert breaker.allows(last + OPEN_SECONDS)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("1.5", 1.5), (90, 90), (0, 0), ("0s", 0), ("90m", 5400), ("90min", 5400), ("2h", 7200),
        ("1d", 86400), ("PT90M", 5400), ("pt1h30m", 5400), ("P1DT2H", 93600), ("PT0.5S", 0.5),
        ("1e3", 1000), ("5e-324", 0), (" 5 ", 5),
    ],
)  # fmt: skip
def test_durations_are_understood(text: object, seconds: float) -> None:
    assert parsing.max_stale(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "-5", -5, "1e400", "1e3h",
        "NaN", "inf", math.nan, math.inf, "P", "PT", "P1Y", "90 m", "9" * 500, "٣", True, [],
        {}, 10**400, -(10**400), 1e308, "400000d", "PT99999999999H", "1h30", "\0", "９０",
    ],
)  # fmt: skip
def test_other_durations_are_refused_in_one_sentence(text: object) -> None:
    with pytest.raises(UsageError, match=r"max_stale is .*: give") as error:
        parsing.max_stale(text)
    assert len(str(error.value)) < 200


@given(st.floats(56.125001, 58.124999), st.floats(-10.124999, -8.125001))
def test_a_point_is_within_half_a_step_of_its_cell(lat: float, lon: float) -> None:
    assert isinstance(GRID.partitions, Grid)
    lat_of, lon_of = GRID.partitions.position(parsing.position(GRID.partitions, repr(lat), repr(lon)))
    assert abs(lat_of - lat) <= 0.125 + 1e-9
    assert abs(lon_of - lon) <= 0.125 + 1e-9


@pytest.mark.parametrize("text", [None, "", "x", "nan", "inf", "1e999", "91", "5_7", "５７", "0x10", "57,5"])
def test_other_degrees_are_refused(text: str | None) -> None:
    with pytest.raises(UsageError):
        parsing.position(Grid(rows=8, cols=8, tile=2), text, "-9")


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_numbers_are_shortened_without_loss(value: float) -> None:
    short = shortest(value)
    assert short is not None
    assert struct.pack("<f", short) == struct.pack("<f", value) or short == value


def test_numbers_read_well() -> None:
    assert [shortest(v) for v in (281.29998779296875, 281.3, 0.1, 1e300, None)] == [281.3, 281.3, 0.1, 1e300, None]
    assert shortest(278.89434814453125) == 278.89435


async def nobody(request: Request) -> Response:
    raise AssertionError(request)


def test_the_router_tells_paths_methods_and_parameters_apart() -> None:
    router = Router(
        [
            Route("GET", "/v1/pipelines/{name}", nobody),
            Route("POST", "/v1/{name}/entities:lookup", nobody),
            Route("GET", "/v1/{name}/entities/{entity...}", nobody),
        ]
    )
    assert router.find("HEAD", "/v1/weather/entities/a/b\n")[1] == {"name": "weather", "entity": "a/b\n"}
    for method, path, status in (
        ("GET", "/v1/weather/entities:lookup", 405),
        ("PUT", "/v1/weather/entities/1", 405),
        ("GET", "/v1/weather/entities/", 404),
        ("GET", "/v1//entities/1", 404),
        ("GET", "/", 404),
        ("GET", "/" + "x" * 5000, 414),
    ):
        with pytest.raises(Problem) as problem:
            router.find(method, path)
        assert problem.value.status == status, path
        assert status != 405 or dict(problem.value.headers)["allow"]


@pytest.mark.parametrize("text", ["maxstale=5", "max_stale=1&max_stale=2", "%ff=1", "&".join(["a=1"] * 50), "x" * 9999])
def test_queries_that_could_be_misread_are_refused(text: str) -> None:
    with pytest.raises(Problem) as problem:
        Request("GET", "/", text).query("max_stale")
    assert problem.value.status in (400, 414)


def test_the_options_of_a_postgres_url_are_kept_beside_the_lookups_own() -> None:
    async def options(url: str) -> str:
        place = PostgresPlace(url)
        try:
            return str(conninfo_to_dict(place._connections._conninfo)["options"])
        finally:
            await place.close()

    own = asyncio.run(options("postgresql://h/d"))
    assert own.startswith("-c statement_timeout=")
    kept = asyncio.run(options("postgresql://h/d?options=-csearch_path%3Dother"))
    assert kept == f"-csearch_path=other {own}"
