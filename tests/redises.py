"""Redis as a cluster of three nodes, and Redis behind a Sentinel: real servers of one's own, for a test."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis
from redis.cluster import RedisCluster

from almanac.stack.redis import binary
from almanac.stack.server import HOST, PORT_ATTEMPTS_MAX, PORTS, free_port, port_is_free

NODES = 3
SLOTS = 16_384
READY_SECONDS_MAX = 60
STOP_SECONDS_MAX = 20
POLL_SECONDS = 0.05
MASTER = "mymaster"
BUS = 10_000  # a node of a cluster talks to the others at its own port and so many more (until Redis 7 it must)


@contextmanager
def running_cluster(folder: Path) -> Iterator[list[int]]:
    """Three nodes that share the slots; yields their ports once each of them knows the whole cluster."""
    with ExitStack() as stack:
        ports = _free_ports(NODES, also=BUS)
        for port in ports:
            stack.enter_context(_running(folder, port, "--cluster-enabled", "yes", "--cluster-node-timeout", "5000"))
        nodes: list[Any] = [stack.enter_context(redis.Redis(host=HOST, port=port)) for port in ports]
        share = SLOTS // NODES + 1
        for at, node in enumerate(nodes):
            slots = range(at * share, min((at + 1) * share, SLOTS))
            node.execute_command("CLUSTER ADDSLOTS", *slots)
        for node in nodes:  # each meets every other: they need not wait for gossip
            for port in ports:
                node.execute_command("CLUSTER MEET", HOST, port)
        for node in nodes:
            _until(lambda node=node: _whole(node), "the cluster's nodes do not know each other")
        with RedisCluster(host=HOST, port=ports[0]) as client:
            client.ping()
        yield ports


@contextmanager
def running_sentinel(folder: Path) -> Iterator[tuple[int, int]]:
    """A Redis and a Sentinel that watches it as `mymaster`; yields the ports of the Sentinel and of the Redis."""
    master, watcher = _free_ports(2)
    configuration = folder / "sentinel.conf"
    configuration.write_text(
        f"port {watcher}\nbind {HOST}\ndir {folder}\nsentinel monitor {MASTER} {HOST} {master} 1\n"
    )
    with _running(folder, master), _process(folder, watcher, str(configuration), "--sentinel"):
        with redis.Redis(host=HOST, port=watcher) as client:
            _until(lambda: client.sentinel_get_master_addr_by_name(MASTER) is not None, "the Sentinel knows no master")
        yield watcher, master


@contextmanager
def running_apart(folder: Path, *, user: str, password: str) -> Iterator[tuple[int, Path]]:
    """A Redis that a user's password opens, and nothing else; yields its port and its Unix socket."""
    (port,) = _free_ports(1)
    socket = folder / "redis.sock"
    with _running(folder, port, "--unixsocket", str(socket)):
        with redis.Redis(host=HOST, port=port) as client:
            client.acl_setuser(user, enabled=True, passwords=[f"+{password}"], categories=["+@all"], keys=["*"])
            client.acl_setuser("default", enabled=False)
        yield port, socket


@contextmanager
def _running(folder: Path, port: int, *options: str) -> Iterator[None]:
    place = folder / str(port)
    place.mkdir()
    words = ("--port", str(port), "--bind", HOST, "--dir", str(place), "--save", "", "--appendonly", "no")
    with _process(place, port, *words, *options):
        yield


@contextmanager
def _process(place: Path, port: int, *words: str) -> Iterator[None]:
    log = place / "redis.log"
    with log.open("wb") as said:
        process = subprocess.Popen([binary(), *words], stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
    try:
        with redis.Redis(host=HOST, port=port) as client:
            _until(lambda: _answers(client) or _ended(process, log), f"redis-server {' '.join(words)} does not answer")
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS_MAX)


def _free_ports(count: int, also: int = 0) -> list[int]:
    """Ports that nothing uses now, each of them free also so many further on, within the range of servers."""
    found: set[int] = set()
    for _ in range(PORT_ATTEMPTS_MAX):
        port = free_port()
        if port + also in PORTS and port_is_free(port + also):
            found.add(port)
        if len(found) == count:
            return list(found)
    raise AssertionError(f"no {count} free ports on {HOST}")


def _ended(process: subprocess.Popen[bytes], log: Path) -> bool:
    """False while it runs; a server that has ended will not answer, and says why in its log."""
    assert process.poll() is None, f"redis-server ended with status {process.returncode}: {log.read_text()}"
    return False


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def _whole(node: Any) -> bool:
    info = node.execute_command("CLUSTER INFO")
    text = info if isinstance(info, dict) else dict(line.split(":", 1) for line in info.decode().split("\r\n") if line)
    return text["cluster_state"] == "ok" and int(text["cluster_known_nodes"]) == NODES


def _until(holds: object, otherwise: str) -> None:
    assert callable(holds)
    give_up_at = time.monotonic() + READY_SECONDS_MAX
    while not holds():
        assert time.monotonic() < give_up_at, otherwise
        time.sleep(POLL_SECONDS)
