"""The floor of `lookup` and `answer`: the lookup service's HTTP server, answering constant bytes.

The same granian server with the same settings on the same kind of event loop;
its application sends bytes of the wanted length and the headers of an answer.
Run by the benchmarks: `python -m benchmarks.constant PORT GET_BYTES POST_BYTES`.
"""

from __future__ import annotations

import sys
from typing import Any

from serving_cache.lookup.__main__ import run, serve

HEADERS = [
    ("content-type", "application/json"),
    ("age", "0"),
    ("almanac-age", "1260"),
    ("etag", 'W/"000000000000000000000000"'),
    ("cache-control", "max-age=2, stale-if-error=85138"),
    ("x-content-type-options", "nosniff"),
]


class Constant:
    """An RSGI application, as `serve` needs one."""

    failure = None

    def __init__(self, get_bytes: int, post_bytes: int) -> None:
        self._bodies = {"GET": b"x" * get_bytes, "POST": b"x" * post_bytes}

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer; a request's body is read first."""
        if scope.method == "POST":
            await protocol()
        protocol.response_bytes(200, HEADERS, self._bodies[scope.method])

    async def close(self) -> None:
        """Nothing to give back."""


def serve_constant(port: int, get_bytes: int, post_bytes: int) -> None:
    """Listen until SIGTERM."""
    run(serve(Constant(get_bytes, post_bytes), "127.0.0.1", port))  # type: ignore[arg-type]


if __name__ == "__main__":
    serve_constant(*map(int, sys.argv[1:4]))
