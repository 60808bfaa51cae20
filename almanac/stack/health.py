"""Is a program healthy? Asked of the program itself where it has an answer to give."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from almanac.clock import format_time
from almanac.errors import UsageError
from almanac.postgres_url import postgres_address
from almanac.redis_url import RedisAddress, redis_address
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
    "reconciler": "reconciler_url",
    "stream": "stream_url",
    "monitor": "monitor_url",
    "lookup": "lookup_url",
}
LISTENING = ("reconciler", "stream", "monitor", "lookup")
"""Programs of our own; each answers `/livez`: is it at work, and `/readyz`: or does it wait for something?"""
REASON_CHARACTERS_MAX = 300


@dataclass(frozen=True, kw_only=True)
class ProgramStatus:
    """One line of `almanac status`.

    Args:
        state: running, starting, stopping, stopped, backoff, fatal, exited; or external, for a server named by URL.
        restarts: starts since the last one that somebody asked for; None for an external server.
        why_not: the reason why it is not healthy; None when it is.
        waits_for: what a healthy program waits for, and why, such as a store that is down; None when for nothing.
        warns_of: what a healthy program may do to harm, such as a Redis that may evict; None when nothing.
    """

    name: str
    state: str
    pid: int | None
    since: datetime | None
    restarts: int | None
    address: str | None
    why_not: str | None
    waits_for: str | None = None
    warns_of: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, with `healthy` spelled out."""
        found = asdict(self)
        found["since"] = None if self.since is None else format_time(self.since)
        return {**found, "healthy": self.why_not is None}


def public_address(settings: Settings, name: str) -> str | None:
    """A program's address without user and password, by the reader of those who connect there.

    Of one that cannot be read only the kind is shown: what asks the program says what is wrong with its address.
    """
    value = getattr(settings, ADDRESS_OF[name]) if name in ADDRESS_OF else None
    if not value:
        return None
    try:
        if name == "postgres":
            return f"postgresql://{postgres_address(value).where}"
        if name == "redis":
            return _redis_shown(redis_address(value))
    except UsageError:
        return "postgresql://…" if name == "postgres" else "redis://…"
    if name == "kafka":
        return value if "@" not in value else "…"
    return _web_shown(value)


def _redis_shown(address: RedisAddress) -> str:
    scheme = {"tcp": "redis", "tls": "rediss", "unix": "unix"}[address.kind]
    return f"{scheme}://{address.where}" + (f"/{address.db}" if address.kind != "unix" else "")


def _web_shown(value: str) -> str:
    try:
        parts = urlsplit(value)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "http://…"
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.path + parts.query + parts.fragment:
        return "http://…"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path}"


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
    if name in LISTENING:
        return _get(settings.need(ADDRESS_OF[name]), "/livez")
    return None


def waits_for(name: str, settings: Settings) -> str | None:
    """What a live program of our own waits for; None when for nothing, or when it is not known."""
    url = getattr(settings, ADDRESS_OF[name]) if name in LISTENING else None
    return _get(url, "/readyz") if url else None


def warns_of(name: str, settings: Settings) -> str | None:
    """What a healthy program may do to harm; None when nothing is known."""
    return redis.may_evict(settings.need("redis_url")) if name == "redis" else None


def _get(url: str, path: str) -> str | None:
    """Why a program of our own does not answer a path with 200; None when it does."""
    import httpx

    try:
        answer = http_client().get(f"{url}{path}")
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    if answer.status_code == 200:
        return None
    said = " ".join(answer.text.split())[:REASON_CHARACTERS_MAX]
    plain = said and answer.headers.get("Content-Type", "").startswith("text/plain")
    return said if plain else f"{path} answered {answer.status_code}"


def alerts(settings: Settings) -> list[dict[str, Any]]:
    """The alerts that the monitor and the stream say last now; none of one that is not there or does not answer."""
    return [alert for url in (settings.monitor_url, settings.stream_url) if url for alert in _alerts(url)]


def _alerts(url: str) -> list[dict[str, Any]]:
    import httpx

    try:
        found = http_client().get(f"{url}/alerts").json()["alerts"]
        return [{name: str(alert[name]) for name in ("name", "pipeline", "starts_at", "reason")} for alert in found]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return []


def why_not(name: str, settings: Settings, state: ProcessState) -> str | None:
    """Why a program is not healthy, by its process and by its own answer; None when it is."""
    if not state.alive:
        return f"{state.state}: {state.problem}" if state.problem else state.state
    return ask(name, settings, state.since)


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
        reason = why_not(name, settings, state)
        return ProgramStatus(
            name=name, state=state.state, pid=state.pid, since=state.since if state.alive else None,
            restarts=restarts(places, name), address=public_address(settings, name),
            why_not=reason, waits_for=waits_for(name, settings) if reason is None else None,
            warns_of=warns_of(name, settings) if reason is None else None,
        )  # fmt: skip

    def external(name: str) -> ProgramStatus:
        reason = ask(name, settings, None)
        return ProgramStatus(
            name=name, state="external", pid=None, since=None, restarts=None,
            address=public_address(settings, name), why_not=reason,
            warns_of=warns_of(name, settings) if reason is None else None,
        )  # fmt: skip

    others = [name for name, key in ADDRESS_OF.items() if name not in names and getattr(settings, key)]
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        return [*pool.map(status_of, names), *pool.map(external, others)]
