"""`almanac status` on a running stack: what a live program waits for, and the alert of a late generation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx

from almanac.clock import floor_hour, utc_now
from almanac.settings import load_settings
from pipelines.weather import weather
from serving_cache.postgres import PostgresStore
from tests.generations import published_generation
from tests.integration.test_stack import Stack, stack, wait_for

__all__ = ["stack"]  # a fixture


def told(stack: Stack) -> dict[str, Any]:
    return dict(json.loads(stack.run("status", "--json").stdout))


def programs(stack: Stack) -> Iterator[dict[str, Any]]:
    yield from told(stack)["programs"]


def test_status_tells_who_waits_and_which_generation_is_late(stack: Stack) -> None:
    stack.up("postgres,redis,reconciler,monitor")
    first = told(stack)
    assert first["healthy"] is True
    assert first["alerts"] == []
    assert {one["name"]: one["waits_for"] for one in first["programs"]}["reconciler"] is None
    here = load_settings(state_dir=stack.state_dir)
    for url in (here.reconciler_url, here.monitor_url):
        assert "almanac_ready" in httpx.get(f"{url}/metrics").text
    with PostgresStore(here.need("postgres_url")) as store:
        published_generation(store, weather, 281.0, floor_hour(utc_now()) - timedelta(hours=9))
    (alert,) = wait_for(lambda: told(stack)["alerts"])
    assert (alert["name"], alert["pipeline"]) == ("AlmanacGenerationLate", "weather")
    assert stack.run("stop", "redis").returncode == 0
    reconciler = wait_for(
        lambda: [one for one in programs(stack) if one["name"] == "reconciler" and one["waits_for"]]
    )[0]  # fmt: skip
    assert reconciler["healthy"] is True
    assert "Redis" in reconciler["waits_for"]
    shown = stack.run("status").stdout
    assert "ALERT AlmanacGenerationLate weather since" in shown
    (waits,) = [line for line in shown.splitlines() if line.startswith("reconciler waits: ")]
    assert ": waiting: Redis" in waits
    assert stack.run("start", "redis").returncode == 0
    wait_for(lambda: all(one["waits_for"] is None for one in programs(stack)))
