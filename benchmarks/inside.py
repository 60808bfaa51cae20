"""Profiles of the lookup service from inside: its application without its HTTP server, one request after the other.

A profile of the serving process would be one of its start-up and of waiting.
"""

from __future__ import annotations

import asyncio
import cProfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from almanac.errors import Unavailable
from benchmarks.measuring import print_profile, say
from benchmarks.reference import World
from serving_cache.lookup.__main__ import open_service, run
from serving_cache.lookup.app import App

WARM_REQUESTS = 50


@dataclass
class _Scope:
    """What granian tells of a request."""

    method: str
    path: str
    query_string: str
    proto: str = "http"
    headers: dict[str, str] = field(default_factory=dict)


class _Protocol:
    """What granian gives to read a body from and to answer with."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.status = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body

    def response_bytes(self, status: int, headers: Any, body: bytes) -> None:
        """Take note of the status."""
        self.status = status


def _taken_apart(request: bytes) -> tuple[_Scope, bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
    path, _, query = target.partition("?")
    return _Scope(method, path, query), body


def profile_requests(world: World, requests: Sequence[bytes], title: str) -> None:
    """Answer requests under cProfile and print the functions that take the time; then without it, and say how long."""
    run(_profile(world, requests, title))


async def _profile(world: World, requests: Sequence[bytes], title: str) -> None:
    app = App({world.pipeline.name: world.pipeline}, lambda: open_service(world.settings))
    app.__rsgi_init__(asyncio.get_running_loop())
    try:
        half = (len(requests) - WARM_REQUESTS) // 2
        await _answer(app, requests[:WARM_REQUESTS])
        profile = cProfile.Profile()
        profile.enable()
        await _answer(app, requests[WARM_REQUESTS : WARM_REQUESTS + half])
        profile.disable()
        began, used = time.perf_counter(), time.process_time()
        await _answer(app, requests[WARM_REQUESTS + half :])
        wall, cpu = time.perf_counter() - began, time.process_time() - used
        rest = len(requests) - WARM_REQUESTS - half
        print_profile(profile, f"{title}, {half} requests")
        say(f"{title}: {1000 * wall / rest:.3f} ms a request, {1000 * cpu / rest:.3f} ms of them this process's own")
    finally:
        await app.close()


async def _answer(app: App, requests: Sequence[bytes]) -> None:
    for request in requests:
        scope, body = _taken_apart(request)
        protocol = _Protocol(body)
        await app.__rsgi__(scope, protocol)
        if protocol.status != 200:
            raise Unavailable(f"{scope.path} was answered with {protocol.status}: see the service's reasons")
