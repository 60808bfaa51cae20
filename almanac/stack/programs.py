"""The programs of the stack: which there are, what each needs first, and how each is run here."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from almanac.errors import StackError, UsageError
from almanac.settings import (
    PROJECT_ROOT,
    SECRET_SETTINGS,
    SecretFilesSource,
    Settings,
    secret_file_variable,
    source_files,
)
from almanac.stack import airflow, postgres
from almanac.stack.places import Places
from almanac.stack.server import HOST, Server, free_port, port_is_free, secret, write_private
from almanac.stack.supervisor import Managed

SERVERS = ("postgres", "redis", "kafka")
AIRFLOW_PROGRAMS = tuple(airflow.ARGUMENTS)
MODULES: Mapping[str, str] = {
    "reconciler": "serving_cache.reconciler",
    "stream": "streaming",
    "monitor": "serving_cache.monitor",
    "lookup": "serving_cache.lookup",
}
METRICS_PROGRAMS = ("reconciler", "stream", "monitor")
"""Programs that listen for nothing but `/metrics` and their health; a port named for metrics is the first one's."""
MANAGED: Mapping[str, Managed] = {
    program.name: program
    for program in (
        Managed(name="postgres", stop_signal="INT", start_seconds=1, stop_seconds=20),
        Managed(name="redis", start_seconds=1),
        Managed(name="kafka", start_seconds=3, stop_seconds=20),
        # Airflow imports for long before it can fail: earlier exits count as failed starts.
        *(Managed(name=name, start_seconds=10, stop_seconds=15) for name in AIRFLOW_PROGRAMS),
        # The stream finishes or abandons its batch: it takes 25 s for that, at most.
        *(Managed(name=name, stop_seconds=30 if name == "stream" else 10) for name in MODULES),
    )
}
# Stopped in this order; those of one stage at once.
STOP_STAGES = ((*AIRFLOW_PROGRAMS, *MODULES), ("kafka", "redis"), ("postgres",))
# What has to be healthy or done before a program starts; `-schema` steps are not programs.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "airflow-schema": ("postgres",),
    "almanac-schema": ("postgres",),
    **dict.fromkeys(AIRFLOW_PROGRAMS, ("airflow-schema",)),
    "airflow-scheduler": ("airflow-schema", "almanac-schema"),
    "reconciler": ("almanac-schema", "redis"),
    "stream": ("almanac-schema", "redis", "kafka"),
    "monitor": ("almanac-schema", "redis"),
    "lookup": ("almanac-schema", "redis"),
}
# The setting that names a server of one's own instead, and the programs it replaces.
INSTEAD: Mapping[str, tuple[str, ...]] = {
    "postgres_url": ("postgres",),
    "redis_url": ("redis",),
    "kafka_bootstrap": ("kafka",),
    "airflow_url": AIRFLOW_PROGRAMS,
}
WRITTEN_DOWN = ("pipelines", "source_data", "source_seed", *INSTEAD)
LOG_FORMAT = "json"
"""How programs of the stack write their logs unless told: `almanac status` and people have other ways to look."""
# Besides Almanac's own: what programs may need of the environment in which `up` was called.
PASSED_ON = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "LD_LIBRARY_PATH"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "OMP_NUM_THREADS"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    )
)
PASSED_ON_PREFIXES = ("ALMANAC_", "OTEL_")
QUIET = {"FEAST_USAGE": "False", "GX_ANALYTICS_ENABLED": "False", "DO_NOT_TRACK": "1"}
PATH_SETTINGS = ("cache_dir", "dags")


class EnvironmentSettings(Settings):
    """The settings without what an earlier `almanac up` wrote down: what the caller named himself."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment alone, with the files it names."""
        return init_settings, SecretFilesSource(settings_cls), env_settings


def environment_settings() -> Settings:
    """What the caller named himself.

    Raises:
        UsageError: a variable has a value of the wrong kind; names variable and remedy.
    """
    try:
        return EnvironmentSettings.model_validate({})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper() if first["loc"] else "?"
        raise UsageError(f"ALMANAC_{name} is not usable ({first['msg']}): correct or unset it") from None


@dataclass(frozen=True, kw_only=True)
class StackPlan:
    """What `almanac up` is to run.

    Args:
        places: where.
        named: the settings named in the environment.
        programs: names, in the order of `MANAGED`.
        ports: a port for each embedded server, Airflow, the lookup and each program's metrics.
        endpoints: the addresses, as they are written down for the settings of every process.
    """

    places: Places
    named: Settings
    programs: tuple[str, ...]
    ports: Mapping[str, int]
    endpoints: Mapping[str, Any]


def choose(named: Settings, only: Iterable[str] | None) -> tuple[str, ...]:
    """The programs to run: all, or those asked for, without those that are named by URL.

    Raises:
        UsageError: a name is none of a program's.
    """
    replaced = {program for name, programs in INSTEAD.items() if getattr(named, name) for program in programs}
    wanted = set(MANAGED) if only is None else {check_name(name) for name in only}
    return tuple(name for name in MANAGED if name in wanted - replaced)


def check_name(name: str) -> str:
    """Return a program's name, or say which there are.

    Raises:
        UsageError: there is no such program.
    """
    if name not in MANAGED:
        raise UsageError(f"no program is named {name!r}: name one of {', '.join(MANAGED)}")
    return name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no such file (or a damaged one, which is written anew)."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def choose_ports(places: Places, named: Settings, programs: Iterable[str], in_use: Mapping[str, int]) -> dict[str, int]:
    """The ports of last time where they are free, else free ones.

    Args:
        programs: those to be started; a port named for another one does not matter.
        in_use: ports that programs of this stack listen on now, and keep.

    Raises:
        StackError: a port named for the lookup or for metrics is taken.
    """
    last = read_json(places.ports)
    ports: dict[str, int] = {}
    for name in (*SERVERS, "airflow", "lookup", *METRICS_PROGRAMS):
        wanted = _named_port(named, name) if name in programs else None
        if wanted is not None:
            port, host, variable = wanted
            if in_use.get(name) != port and not port_is_free(port, host):
                raise StackError(
                    f"port {port} on {host} ({variable}, for {name}) is in use: "
                    "stop what listens there, name another port, or unset it for a free one"
                )
        elif name in in_use:
            port = in_use[name]
        else:
            port = last.get(name, 0)
            while not port or port in ports.values() or not port_is_free(port):
                port = free_port()
        ports[name] = port
    write_private(places.ports, json.dumps(ports))
    return ports


def _named_port(named: Settings, name: str) -> tuple[int, str, str] | None:
    """The port that the caller named for a program, the address it is on, and the variable; None for any free one."""
    if name == "lookup" and named.lookup_port is not None:
        return named.lookup_port, named.lookup_host, "ALMANAC_LOOKUP_PORT"
    if name in METRICS_PROGRAMS and named.metrics_port:
        return named.metrics_port + METRICS_PROGRAMS.index(name), named.metrics_host, "ALMANAC_METRICS_PORT"
    return None


def _reached(host: str) -> str:
    """The address to reach a listener at: this machine's own where it listens on all."""
    return HOST if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared only


def addresses(
    places: Places, named: Settings, programs: Iterable[str], ports: Mapping[str, int], postgres_url: str
) -> dict[str, Any]:
    """What is written down for the settings: addresses of the programs, and what the caller named."""
    found: dict[str, Any] = {}
    password = quote(secret(places.state_dir, "redis"), safe="")
    known: dict[str, dict[str, Any]] = {
        "postgres": {"postgres_url": postgres_url},
        "redis": {"redis_url": f"redis://:{password}@{HOST}:{ports['redis']}/0"},
        "kafka": {"kafka_bootstrap": f"{HOST}:{ports['kafka']}"},
        "stream": {"origin_secret": secret(places.state_dir, "stream-origin")},
        "airflow-api-server": {
            "airflow_url": f"http://{HOST}:{ports['airflow']}",
            "airflow_username": airflow.USER,
            "airflow_password": secret(places.state_dir, "airflow-admin"),
        },
        "lookup": {
            "lookup_url": f"http://{_reached(named.lookup_host)}:{ports['lookup']}",
            "lookup_port": ports["lookup"],
        },
    }
    for name in METRICS_PROGRAMS:
        at = f"http://{_reached(named.metrics_host)}:{ports[name]}"
        known[name] = {**known.get(name, {}), f"{name}_url": at}
    for program in programs:
        found |= known.get(program, {})
    for name in WRITTEN_DOWN:
        if name in named.model_fields_set and (value := getattr(named, name)) is not None:
            found[name] = absolute_sources(value) if name == "source_data" else value
    if named.airflow_url and named.airflow_password:
        found |= {"airflow_username": named.airflow_username, "airflow_password": named.airflow_password}
    return found


def absolute(path: Path) -> Path:
    """The same path for programs that work in other folders."""
    return path.expanduser().absolute()


def absolute_sources(text: str) -> str:
    """The same files of `source_data` for programs that work in other folders."""
    return ",".join(f"{pipeline}={absolute(path)}" for pipeline, path in source_files(text).items())


def program_environment(places: Places, named: Settings) -> dict[str, str]:
    """The environment that all Python programs share."""
    found = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or name.upper().startswith(PASSED_ON_PREFIXES)
    }
    for name in PATH_SETTINGS:
        variable = f"ALMANAC_{name.upper()}"
        if variable in found:
            found[variable] = str(absolute(getattr(named, name)))
    if "ALMANAC_SOURCE_DATA" in found:
        found["ALMANAC_SOURCE_DATA"] = absolute_sources(named.source_data)
    for variable in map(secret_file_variable, SECRET_SETTINGS):
        if found.get(variable):
            found[variable] = str(absolute(Path(found[variable])))
    # Files of declarations may be named relative to where `up` was called.
    if "ALMANAC_PIPELINES" in found:
        parts = [part.strip() for part in named.pipelines.split(",")]
        found["ALMANAC_PIPELINES"] = ",".join(
            str(absolute(Path(part))) if part.endswith(".py") else part for part in parts
        )
    if found.get("ALMANAC_FEATURE_REPO"):
        folders = [part.strip() for part in named.feature_repo.split(",") if part.strip()]
        found["ALMANAC_FEATURE_REPO"] = ",".join(str(absolute(Path(folder))) for folder in folders)
    found |= QUIET
    found["ALMANAC_STATE_DIR"] = str(places.state_dir)
    found["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), found.get("PATH", os.defpath)))
    found["PYTHONPATH"] = str(PROJECT_ROOT)
    found["PYTHONUNBUFFERED"] = "1"
    if places.temporary is not None:  # Feast leaves a folder behind in each process that is killed
        found["TMPDIR"] = str(places.temporary)
    return found


def python_program(plan: StackPlan, name: str) -> Server:
    """A program of Airflow's or of our own, prepared; its health is asked for by `health.why_not`."""
    places = plan.places
    folder = places.folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    environment = program_environment(places, plan.named)
    if name in airflow.ARGUMENTS:
        environment |= airflow_environment(plan, name)
        command = (sys.executable, *airflow.words(name))
    else:
        command = (sys.executable, "-m", MODULES[name])
        environment.setdefault("ALMANAC_LOG_FORMAT", LOG_FORMAT)
    environment.pop("ALMANAC_METRICS_PORT", None)  # one port for each program, not one for all
    if name in METRICS_PROGRAMS:
        environment["ALMANAC_METRICS_PORT"] = str(plan.ports[name])
    return Server(
        name=name, command=command, directory=folder, environment=environment, address="", port=0, why_not=lambda: None
    )


def airflow_environment(plan: StackPlan, name: str) -> dict[str, str]:
    """Airflow's settings for one of its programs, or for a command of it."""
    airflow.prepare(plan.places)
    connection = os.environ.get(airflow.CONNECTION_VARIABLE)
    if not connection and plan.named.postgres_url:
        connection = airflow.database_url(plan.named.postgres_url)
    elif not connection:
        connection = postgres.url(plan.places.state_dir, plan.ports["postgres"], "airflow", "postgresql+psycopg2")
    found = airflow.environment(plan.places, plan.ports["airflow"], connection, name)
    return found if plan.named.dags is None else found | airflow.bundles(absolute(plan.named.dags))


def entry(server: Server) -> dict[str, Any]:
    """What the launcher reads of a program."""
    found = shutil.which(server.command[0]) or server.command[0]
    return {
        "command": [found, *server.command[1:]],
        "directory": str(server.directory),
        "environment": dict(server.environment),
    }
