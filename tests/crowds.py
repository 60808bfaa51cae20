"""Many callers at once: each a connection of HTTP/1.1 with one request under way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Said:
    """One answer."""

    path: str
    status: int
    body: Any


def crowd(url: str, paths: Callable[[int], Iterator[str]], callers: int) -> list[Said]:
    """Let each caller ask for its own paths, one after the other; returns all answers.

    Args:
        url: where the service listens.
        paths: what a caller asks for, by its number.
    """
    return asyncio.run(_crowd(url, paths, callers))


async def _crowd(url: str, paths: Callable[[int], Iterator[str]], callers: int) -> list[Said]:
    parts = urlsplit(url)
    found: list[Said] = []

    async def caller(number: int) -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        for path in paths(number):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.split("content-length:")[1].split("\r\n")[0])
            found.append(Said(path, int(head.split(" ", 2)[1]), json.loads(await reader.readexactly(length))))
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return found
