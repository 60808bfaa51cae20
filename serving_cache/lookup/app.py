"""The service behind granian's RSGI: bytes in, bytes out. Whatever happens, the caller gets JSON and no traceback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from almanac import logs
from almanac.errors import AlmanacError
from almanac.pipeline import Pipeline
from serving_cache.lookup.openapi import document_bytes
from serving_cache.lookup.routes import Routes
from serving_cache.lookup.service import Service
from serving_cache.lookup.web import BODY_BYTES_MAX, Problem, Request, Response, Router

logger = logging.getLogger(__name__)

BODY_SECONDS_MAX = 10.0
OPENING_SECONDS_MAX = 10.0
HEADERS_READ = ("if-none-match", "accept", "content-type")
TRACE_MEMBER = "trace"


class App:
    """An RSGI application.

    Args:
        pipelines: the declarations, by name.
        open_service: makes the service; slow, for it imports the stores' drivers. Runs in a thread while the
            process already listens. If it fails, `failure` says why and `on_failure` is called.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline], open_service: Callable[[], Service]) -> None:
        self._open_service = open_service
        self._pipelines = pipelines
        self.failure: AlmanacError | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._opening: asyncio.Task[Service] | None = None
        self._warming: asyncio.Task[dict[str, str]] | None = None
        self._routes = Routes(pipelines, self.service, document_bytes())
        self._router = Router(self._routes.table())

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to open the service."""
        self._opening = loop.create_task(self._open())

    async def _open(self) -> Service:
        try:
            service = await asyncio.get_running_loop().run_in_executor(None, self._open_service)
        except AlmanacError as error:
            self.failure = error
            self.on_failure()
            raise
        self._routes.counts = service.counts
        self._warming = asyncio.create_task(service.health())  # the first lookup then finds connections
        if service.fresh is not None:
            service.fresh.warm(list(self._pipelines.values()))
        return service

    async def service(self) -> Service:
        """The service, once it is open.

        Raises:
            Problem: 503 if that takes too long.
        """
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        done, _ = await asyncio.wait({self._opening}, timeout=OPENING_SECONDS_MAX)
        if not done:
            raise Problem(503, "starting", "the service is still starting: retry", headers=(("retry-after", "1"),))
        return self._opening.result()

    async def close(self) -> None:
        """Give connections back."""
        if self._warming is not None:
            await self._warming
        if self._opening is not None and self._opening.done() and not self._opening.exception():
            await self._opening.result().close()

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one request."""
        if scope.proto != "http":
            protocol.close(403)
            return
        header = scope.headers.get(logs.TRACEPARENT)
        if header is None:  # as almost always: then nothing is named, and an error gets a trace of its own
            await self._respond(scope, protocol, None)
            return
        trace = logs.trace_of(header)
        with logs.context(trace=trace):
            await self._respond(scope, protocol, trace)

    async def _respond(self, scope: Any, protocol: Any, trace: logs.Trace | None) -> None:
        try:
            response = await self._answer(scope, protocol)
        except Problem as problem:
            if trace is not None:
                problem.members.setdefault(TRACE_MEMBER, trace.trace_id)
            response = problem.response()
        except Exception:
            trace = trace or logs.trace_of(None)
            logger.exception("a request to %s failed", scope.path[:200], extra={"trace": trace.trace_id})
            detail = "the service made a mistake: its log says more under this trace"
            response = Problem(500, "internal", detail, members={TRACE_MEMBER: trace.trace_id}).response()
        _send(protocol, scope.method, response)

    async def _answer(self, scope: Any, protocol: Any) -> Response:
        handler, parameters = self._router.find(scope.method, scope.path)  # granian has decoded the path
        request = Request(
            method=scope.method,
            path=scope.path,
            query_string=scope.query_string,
            headers={name: scope.headers.get(name) or "" for name in HEADERS_READ},
            body=await _body(scope, protocol) if scope.method == "POST" else b"",
        )
        return await handler(request, **parameters)


async def _body(scope: Any, protocol: Any) -> bytes:
    """The whole body.

    Raises:
        Problem: 413 beyond `BODY_BYTES_MAX`, 408 beyond `BODY_SECONDS_MAX`.
    """
    too_large = Problem(413, "large-body", f"the body is larger than {BODY_BYTES_MAX:,} bytes: ask for fewer entities")
    declared = scope.headers.get("content-length") or ""
    if declared.isdecimal() and (len(declared) > 12 or int(declared) > BODY_BYTES_MAX):
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            async for part in protocol:
                size += len(part)
                if size > BODY_BYTES_MAX:
                    raise too_large
                parts.append(bytes(part))
    except TimeoutError:
        raise Problem(
            408, "slow-body", f"the body did not arrive within {BODY_SECONDS_MAX:g} s: send it again"
        ) from None
    return b"".join(parts)


def _send(protocol: Any, method: str, response: Response) -> None:
    headers = [*response.headers, ("x-content-type-options", "nosniff")]
    if method == "HEAD" or response.status in (204, 304):
        protocol.response_empty(response.status, headers)
    else:
        protocol.response_bytes(response.status, headers, response.body)
