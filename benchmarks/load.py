"""A load generator: some connections of HTTP/1.1, each with one request under way, on raw sockets and epoll.

Closed loop: a connection sends its next request when it has its answer. That
measures what a server can do at that many callers; the time of a request then
includes waiting for the other callers' requests. It does next to nothing per
answer (finds its end by Content-Length, looks at the status), so that one core
drives several times what the services here can answer; `busy` is the share of
the time that it was busy itself: below 1 it was not the bottleneck.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from almanac.errors import Unavailable

RECEIVE_BYTES = 262_144
ANSWER_SECONDS_MAX = 30.0
REQUESTS_MIN = 20  # that count, however slow they are
WARM_SHARE = 0.2  # of the time, before anything counts


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one measurement found.

    Args:
        rate: requests a second; p50_ms, p99_ms: their times; both without the warming up.
        busy: share of the time that the generator was busy itself.
        body_bytes: of the last answer.
        answered: all answers, those of the warming up too.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    busy: float
    body_bytes: int
    answered: int

    def as_dict(self) -> dict[str, Any]:
        """For the round's line."""
        return {
            "rate": self.rate,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "busy": self.busy,
            "body_bytes": self.body_bytes,
        }


def get(url: str, path: str) -> bytes:
    """The bytes of a GET."""
    return f"GET {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAccept: */*\r\n\r\n".encode()


def post(url: str, path: str, body: bytes) -> bytes:
    """The bytes of a POST of JSON."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection:
    """One caller: a socket, its answer so far, and when its request left."""

    __slots__ = ("answer", "sent_at", "socket", "wanted")

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), ANSWER_SECONDS_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer = b""
        self.wanted = 0
        self.sent_at = 0.0


def drive(url: str, requests: Sequence[bytes], *, connections: int, seconds: float, once: bool = False) -> Load:
    """Send the requests round and round for some time, or each only once.

    Args:
        url: where the service listens.
        requests: whole requests; each connection takes the next one.
        connections: callers at once.
        seconds: how long, a first part for warming up not included.
        once: end when all were sent, even if it is earlier.

    Raises:
        Unavailable: the service did not answer, closed a connection, or answered other than 200.
    """
    parts = urlsplit(url)
    callers = [_Connection(str(parts.hostname), int(parts.port or 80)) for _ in range(connections)]
    try:
        return _loop(callers, iter(requests) if once else _endless(requests), seconds)
    except OSError as error:
        raise Unavailable(f"{url} did not answer ({error}): see its log") from error
    finally:
        for caller in callers:
            caller.socket.close()


def _endless(requests: Sequence[bytes]) -> Iterator[bytes]:
    while True:
        yield from requests


def _loop(callers: list[_Connection], requests: Iterator[bytes], seconds: float) -> Load:
    clock = time.perf_counter
    by_number = {caller.socket.fileno(): caller for caller in callers}
    taken: list[float] = []
    body_bytes = counted_from = 0
    with select.epoll() as poller:
        for number, caller in by_number.items():
            poller.register(number, select.EPOLLIN)
            caller.sent_at = clock()
            caller.socket.sendall(next(requests))
        began, used = clock(), time.process_time()  # once more when it is warm
        warm_at, warm, all_sent, now = began + seconds * WARM_SHARE, False, False, began
        while not all_sent and (now < warm_at + seconds or len(taken) < counted_from + REQUESTS_MIN):
            ready = poller.poll(ANSWER_SECONDS_MAX)
            if not ready:
                raise TimeoutError(f"no answer in {ANSWER_SECONDS_MAX:g} s")
            for number, _ in ready:
                caller = by_number[number]
                size = _receive(caller)
                if size < 0:
                    continue
                now = clock()
                taken.append(now - caller.sent_at)
                body_bytes, caller.sent_at = size, now
                request = next(requests, None)
                if request is None:
                    all_sent = True
                else:
                    caller.socket.sendall(request)
            if not warm and now >= warm_at:
                warm, counted_from, used, began = True, len(taken), time.process_time(), now
    counted = np.array(taken[counted_from:] or taken) * 1000
    span = now - began
    p50, p99 = np.percentile(counted, [50, 99])
    return Load(
        rate=len(counted) / span,
        p50_ms=float(p50),
        p99_ms=float(p99),
        busy=(time.process_time() - used) / span,
        body_bytes=body_bytes,
        answered=len(taken),
    )


def _receive(caller: _Connection) -> int:
    """Take what came; the body's size when the answer is whole, else -1."""
    data = caller.socket.recv(RECEIVE_BYTES)
    if not data:
        raise ConnectionError("it closed a connection")
    if caller.wanted:
        data = caller.answer + data
    else:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            raise ConnectionError("headers came in pieces")
        if not data.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(f"it answered {data[:200]!r}")
        head = data[:end].lower()
        at = head.index(b"content-length:") + 15
        stop = head.find(b"\r", at)
        caller.wanted = end + 4 + int(head[at : stop if stop > 0 else None])
    if len(data) < caller.wanted:
        caller.answer = data
        return -1
    size = len(data) - data.index(b"\r\n\r\n") - 4
    caller.answer, caller.wanted = b"", 0
    return size
