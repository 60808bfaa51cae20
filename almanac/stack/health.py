"""Is a program healthy? Asked of the program itself where it has an answer to give."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from almanac.clock import format_time
from almanac.settings import Settings
from almanac.stack import airflow, kafka, postgres, redis
from almanac.stack.places import Places
from almanac.stack.programs import AIRFLOW_PROGRAMS, MANAGED, read_json
from almanac.stack.server import http_client
from almanac.stack.supervisor import ProcessState, Supervisor

CHECKS_AT_ONCE = 8
ADDRESS_OF = {
    "postgres": "postgres_url",
    "redis": "redis_url",
    "kafka": "kafka_bootstrap",
    "airflow-api-server": "airflow_url",
    "lookup": "lookup_url",
}


@dataclass(frozen=True, kw_only=True)
class ProgramStatus:
    """One line of `almanac status`.

    Args:
        state: running, starting, stopping, stopped, backoff, fatal, exited; or external, for a server named by URL.
        restarts: starts since the last one that somebody asked for; None for an external server.
        why_not: the reason why it is not healthy; None when it is.
    """

    name: str
    state: str
    pid: int | None
    since: datetime | None
    restarts: int | None
    address: str | None
    why_not: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, with `healthy` spelled out."""
        found = asdict(self)
        found["since"] = None if self.since is None else format_time(self.since)
        return {**found, "healthy": self.why_not is None}


def public_address(settings: Settings, name: str) -> str | None:
    """A program's address without user and password."""
    value = getattr(settings, ADDRESS_OF[name]) if name in ADDRESS_OF else None
    if not value or "://" not in value:
        return value or None
    parts = urlsplit(value)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def ask(name: str, settings: Settings, since: datetime | None) -> str | None:
    """Ask a program that has a process; None when healthy, else the reason.

    Args:
        settings: where the servers are.
        since: when its process was started.
    """
    if name == "postgres":
        return postgres.why_not(settings.need("postgres_url"))
    if name == "redis":
        return redis.why_not(settings.need("redis_url"))
    if name == "kafka":
        return kafka.why_not(settings.need("kafka_bootstrap"))
    if name in AIRFLOW_PROGRAMS:
        return airflow.why_not(settings.need("airflow_url"), name, since)
    if name == "lookup":
        return _lookup_why_not(settings.need("lookup_url"))
    return None  # the reconciler and the stream listen nowhere: that they run is what can be known


def _lookup_why_not(url: str) -> str | None:
    import httpx

    try:
        answer = http_client().get(f"{url}/livez")
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    return None if answer.status_code == 200 else f"/livez answered {answer.status_code}"


def why_not(name: str, settings: Settings, state: ProcessState) -> str | None:
    """Why a program is not healthy, by its process and by its own answer; None when it is."""
    if not state.alive:
        return f"{state.state}: {state.problem}" if state.problem else state.state
    reason = ask(name, settings, state.since)
    if reason is None and name not in ADDRESS_OF and name not in AIRFLOW_PROGRAMS and state.state == "starting":
        return "starting"
    return reason


def restarts(places: Places, name: str) -> int | None:
    """How often it came back by itself since it was last started on purpose."""
    try:
        return max(len((places.run / f"{name}.starts").read_text().splitlines()) - 1, 0)
    except OSError:
        return None


def survey(places: Places, settings: Settings) -> list[ProgramStatus]:
    """The status of every program of a running stack, in starting order; then of servers named by URL."""
    supervisor = Supervisor(places)
    planned = read_json(places.programs)
    states = supervisor.states()
    names = [name for name in MANAGED if name in planned and name in states]

    def status_of(name: str) -> ProgramStatus:
        state = states[name]
        return ProgramStatus(
            name=name, state=state.state, pid=state.pid, since=state.since if state.alive else None,
            restarts=restarts(places, name), address=public_address(settings, name),
            why_not=why_not(name, settings, state),
        )  # fmt: skip

    def external(name: str) -> ProgramStatus:
        return ProgramStatus(
            name=name, state="external", pid=None, since=None, restarts=None,
            address=public_address(settings, name), why_not=ask(name, settings, None),
        )  # fmt: skip

    others = [name for name, key in ADDRESS_OF.items() if name not in names and getattr(settings, key)]
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        return [*pool.map(status_of, names), *pool.map(external, others)]
