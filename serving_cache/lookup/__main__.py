"""Start the lookup service: `python -m serving_cache.lookup`. Ends on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from granian.constants import Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from almanac import logs
from almanac.declarations import pipelines
from almanac.errors import AlmanacError, StackError, UsageError
from almanac.plain_text import one_line
from almanac.settings import Settings, settings
from serving_cache.lookup.app import App
from serving_cache.lookup.service import Service

if TYPE_CHECKING:
    from almanac.steady import SystemClock
    from serving_cache.lookup.fresh import FreshComputation
    from serving_cache.lookup.write_back import OverlayStore

REQUESTS_MAX = 512  # at work at once; more wait in the listening socket's queue
QUEUE_MAX = 1_024  # connections that wait to be accepted
HEADER_MILLISECONDS_MAX = 10_000
STOP_SECONDS_MAX = 5
EXIT_INTERRUPTED = 130
SWITCH_SECONDS = 0.001
"""How long a thread that loads a model or writes back may keep the event loop from running (Python's own: 5 ms)."""


def open_service(config: Settings) -> Service:
    """Import the stores' drivers and make the service; connects only when first asked."""
    from almanac.steady import SystemClock
    from serving_cache.lookup.counting import Counts
    from serving_cache.lookup.postgres_place import PostgresPlace
    from serving_cache.lookup.redis_place import RedisPlace

    fresh_for = timedelta(seconds=config.fresh_for_seconds) if config.fresh_for_seconds else None
    places = (RedisPlace(config.need("redis_url")), PostgresPlace(config.need("postgres_url")))
    clock = SystemClock()
    return Service(places, fresh_for=fresh_for, clock=clock, fresh=open_fresh(config, clock), counts=Counts())


def open_fresh(config: Settings, clock: SystemClock) -> FreshComputation:
    """What fresh computations need; stores and models are opened when first needed."""
    from serving_cache.lookup.fresh import FreshComputation
    from serving_cache.lookup.models import Models
    from serving_cache.lookup.online import OnlineFeatures, recorded_plans
    from serving_cache.lookup.places import Guarded
    from serving_cache.lookup.write_back import WriteBack
    from serving_cache.postgres_client import Client

    online = OnlineFeatures(config.need("redis_url"), recorded_plans(Client(config.need("postgres_url"))))
    return FreshComputation(Guarded(online), Models(config.models_dir), WriteBack(lambda: open_stores(config)), clock)


def open_stores(config: Settings) -> tuple[OverlayStore, OverlayStore]:
    """The stores that fresh predictions are written back to: the record, and its copy."""
    from serving_cache.postgres import PostgresStore
    from serving_cache.redis import RedisStore

    return PostgresStore(config.need("postgres_url")), RedisStore(config.need("redis_url"))


def free_port(host: str, wanted: int | None) -> int:
    """The port to listen on: the wanted one if nobody has it, any free one if none is wanted.

    granian shares a port that is taken (SO_REUSEPORT), so that two services would answer by turns; hence the check.

    Raises:
        StackError: the port is in use.
        UsageError: the address is not this machine's, or the port needs a privilege.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted or 0))
        except OverflowError:
            raise UsageError(f"port {wanted} does not exist: set ALMANAC_LOOKUP_PORT to 1 to 65535") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StackError(
                    f"port {wanted} on {host} is in use: stop what listens there, or set ALMANAC_LOOKUP_PORT to another"
                ) from None
            raise UsageError(
                f"cannot listen on {host} port {wanted} ({error.strerror or error}): "
                "correct ALMANAC_LOOKUP_HOST and ALMANAC_LOOKUP_PORT"
            ) from None
        return int(probe.getsockname()[1])


async def serve(app: App, host: str, port: int) -> None:
    """Listen until SIGTERM or SIGINT, then end in order."""
    server = Server(
        app,
        address=host,
        port=port,
        interface=Interfaces.RSGI,
        backlog=QUEUE_MAX,
        backpressure=REQUESTS_MAX,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_MILLISECONDS_MAX),
        websockets=False,
        log_level=LogLevels.error,
    )
    server.workers_kill_timeout = STOP_SECONDS_MAX
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    app.on_failure = server.stop
    print(f"lookup listens on http://{host}:{port}", flush=True)
    await server.serve()
    await app.close()
    if app.failure is not None:
        raise app.failure


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where it is installed."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def main() -> int:
    """Start on the settings' host and port; returns the exit code."""
    try:
        config = settings()
        logs.configure("lookup", config.log_format)
        sys.setswitchinterval(SWITCH_SECONDS)
        found = pipelines()
        for name in ("redis_url", "postgres_url"):
            config.need(name)
        port = free_port(config.lookup_host, config.lookup_port)
        app = App(found, lambda: open_service(config))
        run(serve(app, config.lookup_host, port))
    except AlmanacError as error:
        print(f"lookup: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # before the loop took over the signals
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
