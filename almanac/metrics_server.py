"""The small server beside a process's work: `/metrics`, `/livez`, `/readyz`, and pages of its own."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import REGISTRY, Gauge
from prometheus_client.exposition import choose_encoder

from almanac.errors import StackError, UsageError

REQUESTS_AT_ONCE_MAX = 8
REQUEST_SECONDS_MAX = 5.0
BACKLOG = 16

Health = Callable[[], str | None]
"""Why a process is not ready, or not live, in one line; None when it is. Must answer at once, from any thread."""


def fine() -> None:
    """The health of a process that has nothing to wait for."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a process shows besides its metrics.

    Args:
        process: the process's name, such as `stream`.
        note_ready: is told whether the process is ready, each time that was asked.
        why_not_ready: why it cannot do its work now, for a store that is away, say: waiting mends it.
        why_not_live: why it will never work again without a restart: a thread that hangs.
        pages: JSON of further paths.
    """

    process: str
    note_ready: Callable[[bool], None]
    why_not_ready: Health = fine
    why_not_live: Health = fine
    pages: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)


class MetricsServer(ThreadingHTTPServer):
    """Serves `/metrics`, `/livez`, `/readyz` and pages from threads of its own until `close`.

    Args:
        host, port: where to listen; port 0 is any free one.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = BACKLOG

    def __init__(self, host: str, port: int, shown: Shown) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._room = threading.BoundedSemaphore(REQUESTS_AT_ONCE_MAX)
        self.shown = shown
        super().__init__((host, port), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self.shutdown()
        self.server_close()

    def why_not_ready(self) -> str | None:
        """Ask the process, and pass the answer on to its metric."""
        reason = self.shown.why_not_live() or self.shown.why_not_ready()
        self.shown.note_ready(reason is None)
        return reason

    def server_bind(self) -> None:
        """Bind without asking a name server for this machine's name, as the base class does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a request, if there is room for one more."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        logging.getLogger(__name__).debug("a request for metrics failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_SECONDS_MAX
    server: MetricsServer

    def do_GET(self) -> None:
        """Answer one of a few paths."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self.server.why_not_ready()
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, encode(REGISTRY), content_type)
        elif path == "/livez":
            self._health(self.server.shown.why_not_live(), "live")
        elif path == "/readyz":
            self._health(self.server.why_not_ready(), "ready")
        elif path in self.server.shown.pages:
            self._answer(200, self.server.shown.pages[path](), "application/json")
        else:
            paths = ", ".join(("/metrics", "/livez", "/readyz", *self.server.shown.pages))
            self._answer(404, f"there are {paths}\n".encode())

    def _health(self, reason: str | None, fine: str) -> None:
        self._answer(503 if reason else 200, f"{reason or fine}\n".encode())

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A line a scrape would drown the others."""


def listen(host: str, port: int, shown: Shown) -> MetricsServer:
    """Open the server.

    Raises:
        StackError: the port is in use.
        UsageError: the address is not this machine's, or the port does not exist or needs a privilege.
    """
    try:
        return MetricsServer(host, port, shown)
    except OverflowError:
        raise UsageError(f"port {port} does not exist: set ALMANAC_METRICS_PORT to 1 to 65535") from None
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno is None or error.strerror is None:
            raise UsageError(f"cannot listen on {host} ({error}): correct ALMANAC_METRICS_HOST") from None
        if error.errno == errno.EADDRINUSE:
            raise StackError(
                f"port {port} on {host} is in use: stop what listens there, or set ALMANAC_METRICS_PORT to another"
            ) from None
        raise UsageError(
            f"cannot listen on {host} port {port} ({error.strerror}): "
            "correct ALMANAC_METRICS_HOST and ALMANAC_METRICS_PORT"
        ) from None


def forget(gauge: Gauge, *labels: object) -> None:
    """Show a gauge of these labels no more: what it counted is somebody else's now.

    Where a library has put this process's environment into the multi-process mode, as Feast's server does when it is
    imported, prometheus_client removes nothing and warns: there the gauge is 0, so that sums stay right.
    """
    gauge.labels(*labels).set(0)
    if not {"PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"} & os.environ.keys():
        gauge.remove(*labels)
