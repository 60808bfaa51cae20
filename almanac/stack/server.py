"""What an embedded server is: a command to run, an address to give out, and a question that proves its health."""

from __future__ import annotations

import fcntl
import json
import os
import random
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from almanac.errors import StackError

if TYPE_CHECKING:
    import httpx

HOST = "127.0.0.1"
SECRETS_FILE = "secrets.json"
SECRET_BYTES = 24
ANSWER_SECONDS_MAX = 5.0
# Below the range from which systems take the ports of outgoing connections: a server that is
# stopped for a while finds its port free again.
PORTS = range(15_000, 32_000)
PORT_ATTEMPTS_MAX = 200


@dataclass(frozen=True, kw_only=True)
class Server:
    """One embedded server, prepared to be started.

    Args:
        name: as in the table of programs: postgres, redis, kafka.
        command: absolute path and arguments; stays in the foreground.
        directory: working directory, below the state directory.
        environment: the whole environment of the process, PATH apart.
        address: what goes into the settings (a URL, or host:port).
        port: the TCP port it listens on.
        stop_signal: the signal that stops it in good order.
        why_not: asks the running server; None when healthy, else the reason in one line.
    """

    name: str
    command: tuple[str, ...]
    directory: Path
    address: str
    port: int
    why_not: Callable[[], str | None]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "TERM"


def free_port() -> int:
    """A TCP port on localhost that nothing uses now.

    Raises:
        StackError: none was found.
    """
    for _ in range(PORT_ATTEMPTS_MAX):
        port = random.SystemRandom().choice(PORTS)
        if port_is_free(port):
            return port
    raise StackError(f"no free TCP port from {PORTS.start} to {PORTS.stop - 1} on {HOST}: stop what uses them")


def port_is_free(port: int, host: str = HOST) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections linger in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read (mode 0600), all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    draft.replace(path)


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """One thread of one process at a time adds a secret."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _secrets(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StackError(f"{path} cannot be read ({error}): restore it, or `almanac down --purge`") from None


def secret(state_dir: Path, name: str, make: Callable[[], str] | None = None) -> str:
    """A generated secret, the same at each start: made once and kept in `secrets.json` (mode 0600).

    Args:
        name: what it opens, such as `redis`.
        make: how to make it; by default, 32 characters that are safe in URLs.

    Raises:
        StackError: the file is there but unreadable.
    """
    path = state_dir / SECRETS_FILE
    known = _secrets(path)
    if name not in known:
        state_dir.mkdir(parents=True, exist_ok=True)
        with _only_writer(state_dir):
            known = _secrets(path)
            if name not in known:
                known[name] = make() if make else secrets.token_urlsafe(SECRET_BYTES)
                write_private(path, json.dumps(known, indent=2, sort_keys=True))
    return known[name]


@lru_cache(maxsize=1)
def http_client() -> httpx.Client:
    """One HTTP client for all questions about health: making one reads all certificate authorities."""
    import httpx

    return httpx.Client(timeout=ANSWER_SECONDS_MAX, trust_env=False)
