"""A way to a server that forgets its connections without a word, as a firewall or a failover does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

CHUNK = 65_536


@dataclass
class Forgetful:
    """Passes bytes on between clients and one server.

    Args:
        url: where clients connect to.
        opened: connections so far; `forgotten`: how many of the first pass nothing on any more.
        hung: whether new ones pass nothing on either.
    """

    url: str = ""
    opened: int = 0
    forgotten: int = 0
    hung: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def forget(self) -> None:
        """Pass nothing on of any connection that is open now."""
        self.forgotten = self.opened


@asynccontextmanager
async def forgetful(url: str) -> AsyncIterator[Forgetful]:
    """A way to the server of a URL."""
    parts = urlsplit(url)
    way = Forgetful()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        way.opened += 1
        number = way.opened
        there, back = await asyncio.open_connection(parts.hostname, parts.port)
        way.writers += [writer, back]

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await source.read(CHUNK):
                    if number > way.forgotten and not way.hung:
                        target.write(data)
            target.close()

        for each in (pass_on(reader, back), pass_on(there, writer)):
            way.tasks.add(asyncio.ensure_future(each))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        way.url = urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        yield way
        for task in way.tasks:
            task.cancel()
        await asyncio.gather(*way.tasks, return_exceptions=True)
        for writer in way.writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in way.writers), return_exceptions=True)
