"""The servers of one benchmark: on free ports, in a temporary state directory, on one core, gone afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from almanac.settings import Settings, load_settings
from almanac.stack import kafka, postgres, redis
from almanac.stack.server import Server, free_port
from almanac.stack.servers import running
from benchmarks.measuring import Cores, on_core


@contextmanager
def running_servers(cores: Cores, *, with_kafka: bool = False) -> Iterator[Settings]:
    """Start Postgres (as durable as `almanac up` makes it), Redis and, if wanted, Kafka; yields settings with them."""
    folder = Path(tempfile.mkdtemp(prefix="almanac-bench-"))
    try:
        with ExitStack() as stack:
            with on_core(cores.servers):  # what is started here stays there
                database = _start(stack, postgres.prepare(folder, free_port()), folder)
                postgres.ensure_databases(folder, database.port)
                cache = _start(stack, redis.prepare(folder, free_port()), folder)
                broker = None
                if with_kafka:
                    jars = load_settings().cache_dir
                    broker = _start(stack, kafka.prepare(folder, free_port(), jars), folder).address
            yield load_settings(
                state_dir=folder, postgres_url=database.address, redis_url=cache.address, kafka_bootstrap=broker
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(stack: ExitStack, server: Server, folder: Path) -> Server:
    return stack.enter_context(running(server, folder / f"{server.name}.log"))
