"""Airflow as four programs: API server with its UI, scheduler, DAG processor, triggerer; configured by environment."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from almanac.clock import parse_time
from almanac.errors import UsageError
from almanac.postgres_url import postgres_address
from almanac.settings import PROJECT_ROOT
from almanac.stack.places import Places
from almanac.stack.server import HOST, http_client, secret, write_private

USER = "admin"
DATABASE = "airflow"
# Tasks at once: enough that one waits for I/O while another computes, few enough for a laptop's memory.
TASKS_AT_ONCE_MIN = 2
TASKS_AT_ONCE_MAX = 4
CONNECTION_VARIABLE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"

ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    # Task logs lie on this machine's disk, where the API server reads them: no log servers.
    "airflow-api-server": ("api-server",),
    "airflow-scheduler": ("scheduler", "--skip-serve-logs"),
    "airflow-dag-processor": ("dag-processor",),
    "airflow-triggerer": ("triggerer", "--skip-serve-logs"),
}
COMMAND_LINES: Mapping[str, str] = {"airflow-scheduler": "dags.scheduler"}
"""Modules to run in place of `airflow`: the scheduler, from which tasks are forked, imports what they need first."""
# Name in the health report, and of its heartbeat there.
REPORTED: Mapping[str, tuple[str, str]] = {
    "airflow-scheduler": ("scheduler", "latest_scheduler_heartbeat"),
    "airflow-dag-processor": ("dag_processor", "latest_dag_processor_heartbeat"),
    "airflow-triggerer": ("triggerer", "latest_triggerer_heartbeat"),
}

# How soon a death is noticed, so that the run goes on within half a minute; Airflow's own figures are minutes.
# A busy machine may miss a beat or two before anything is thought dead, and what is started again by mistake is
# harmless: the ledger says what is done, the fencing token who may write.
RECOVERY: Mapping[str, int] = {
    "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": 2,
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": 12,  # a scheduler silent that long is dead, its tasks orphans
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": 3,
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": 15,  # a task whose supervisor is silent that long is tried again
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": 3,
    "WORKERS__MIN_HEARTBEAT_INTERVAL": 2,
    "WORKERS__MAX_FAILED_HEARTBEATS": 15,  # the API server may be away for half a minute: a task goes on meanwhile
}


def words(program: str) -> tuple[str, ...]:
    """What Python is told to run for one of the four programs."""
    return ("-m", COMMAND_LINES.get(program, "airflow"), *ARGUMENTS[program])


def home(places: Places) -> Path:
    """AIRFLOW_HOME."""
    return places.state_dir / "airflow"


def database_url(postgres_url: str) -> str:
    """SQLAlchemy URL of the database `airflow` on the server of another database's URL.

    Raises:
        UsageError: the URL cannot be read, is of Airflow's own database, or has a parameter that Airflow's driver
            does not know.
    """
    from psycopg2 import ProgrammingError  # type: ignore[import-untyped]
    from psycopg2.extensions import make_dsn  # type: ignore[import-untyped]

    address = postgres_address(postgres_url)
    remedy = f"set {CONNECTION_VARIABLE}"
    if (address.parameters.get("dbname") or address.parameters.get("user")) == DATABASE:
        raise UsageError(
            f"the Postgres URL names the database `{DATABASE}`, which is Airflow's own: name another, or {remedy}"
        )
    for name in address.parameters:
        try:
            make_dsn(**{name: "1"})
        except ProgrammingError:
            raise UsageError(
                f"the Postgres URL has {name}, which Airflow's driver psycopg2 does not know: leave it out, or {remedy}"
            ) from None
    return address.engine_url("psycopg2", database=DATABASE).render_as_string(hide_password=False)


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def environment(places: Places, port: int, connection: str, program: str) -> dict[str, str]:
    """Airflow's own settings for one program."""
    state_dir = places.state_dir
    base_url = f"http://{HOST}:{port}"
    cores = os.cpu_count() or TASKS_AT_ONCE_MIN
    tasks_at_once = min(max(cores, TASKS_AT_ONCE_MIN), TASKS_AT_ONCE_MAX)
    options = {
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": tasks_at_once,
        "CORE__DAGS_FOLDER": PROJECT_ROOT / "dags",
        "CORE__LOAD_EXAMPLES": False,
        # The hourly run is what the stack is for: nobody should have to switch it on.
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": False,
        "CORE__HOSTNAME_CALLABLE": "socket.gethostname",  # no name service is asked
        "CORE__FERNET_KEY": secret(state_dir, "airflow-fernet", _fernet_key),
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": passwords_file(places),
        "CORE__EXECUTION_API_SERVER_URL": f"{base_url}/execution/",
        "DATABASE__SQL_ALCHEMY_CONN": connection,
        "API__HOST": HOST,
        "API__PORT": port,
        "API__BASE_URL": base_url,
        "API__WORKERS": 1,
        "API__SECRET_KEY": secret(state_dir, "airflow-api"),
        "API__INSTANCE_NAME": "Almanac",
        "API_AUTH__JWT_SECRET": secret(state_dir, "airflow-jwt", lambda: secrets.token_hex(64)),
        "DAG_PROCESSOR__REFRESH_INTERVAL": 10,
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 30,
        "DAG_PROCESSOR__PARSING_PROCESSES": 1,
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": 0.5,  # up to which each task of a run waits for its turn
        **RECOVERY,
        "LOGGING__BASE_LOG_FOLDER": places.logs / "airflow",
        "LOGGING__COLORED_CONSOLE_LOG": False,
        # Tasks are forked from the scheduler, and their log is what people read in the UI.
        "LOGGING__LOGGING_LEVEL": "INFO" if program == "airflow-scheduler" else "WARNING",
    }
    return {"AIRFLOW_HOME": str(home(places)), **{f"AIRFLOW__{name}": str(value) for name, value in options.items()}}


def bundles(dags: Path) -> dict[str, str]:
    """The setting by which Airflow takes DAG files from another folder besides our own."""
    kind = "airflow.dag_processing.bundles.local.LocalDagBundle"
    found = [
        {"name": "dags-folder", "classpath": kind, "kwargs": {}},
        {"name": "own", "classpath": kind, "kwargs": {"path": str(dags)}},
    ]
    return {"AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(found)}


def passwords_file(places: Places) -> Path:
    """Where the user's password is, for Airflow and for people (mode 0600)."""
    return home(places) / "passwords.json"


def prepare(places: Places) -> None:
    """Make AIRFLOW_HOME with the user's password."""
    home(places).mkdir(parents=True, exist_ok=True)
    write_private(passwords_file(places), json.dumps({USER: secret(places.state_dir, "airflow-admin")}))


def why_not(base_url: str, program: str, since: datetime | None) -> str | None:
    """Ask the API server about one of the four programs; None when healthy.

    Args:
        since: when the program was started; an older heartbeat was a predecessor's.
    """
    import httpx

    try:
        answer = http_client().get(f"{base_url}/api/v2/monitor/health")
        answer.raise_for_status()
        report = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        return f"the API server does not answer ({error or type(error).__name__})"
    if program not in REPORTED:
        return None if report["metadatabase"]["status"] == "healthy" else "the metadata database does not answer"
    name, heartbeat = REPORTED[program]
    found = report.get(name) or {}
    if found.get("status") != "healthy":
        return f"reported {found.get('status') or 'absent'}"
    beat = found.get(heartbeat)
    if since is not None and beat and parse_time(beat) < since:
        return "no heartbeat since its start"
    return None
