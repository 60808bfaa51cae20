"""`almanac status`, and the addresses that `almanac up` shows."""

from __future__ import annotations

from almanac.clock import utc_now
from almanac.output import print_json, print_table
from almanac.settings import REPORTS, Settings, load_settings
from almanac.stack import airflow, health, leftovers
from almanac.stack.health import ProgramStatus
from almanac.stack.places import Places
from almanac.stack.supervisor import Supervisor

FEATURE_PAGES = f"{REPORTS}/features"
"""Below the state directory: a page for each pipeline whose features were checked."""


def report(places: Places, *, as_json: bool) -> bool:
    """Print the status of the stack; returns whether everything is healthy."""
    if not Supervisor(places).alive():
        return _report_down(places, as_json=as_json)
    settings = load_settings(state_dir=places.state_dir)
    programs = health.survey(places, settings)
    alerts = health.alerts(settings)
    healthy = bool(programs) and all(program.why_not is None for program in programs)
    if as_json:
        print_json(
            {
                "up": True,
                "state_dir": str(places.state_dir),
                "healthy": healthy,
                "programs": [program.to_json() for program in programs],
                "alerts": alerts,
            }
        )
    else:
        columns = ("program", "state", "pid", "since", "restarts", "address", "healthy")
        print_table(columns, [_row(program) for program in programs])
        for program in programs:
            if program.waits_for is not None:
                print(f"{program.name} waits: {program.waits_for}")
            if program.warns_of is not None:
                print(f"WARNING {program.name}: {program.warns_of}")
        for alert in alerts:
            print(f"ALERT {alert['name']} {alert['pipeline']} since {alert['starts_at']}: {alert['reason']}")
        for page in sorted((places.state_dir / FEATURE_PAGES).glob("*.html")):
            print(f"features of {page.stem}: {page}")
    return healthy


def _report_down(places: Places, *, as_json: bool) -> bool:
    left = [process.pid for process in leftovers.find(places)] if places.state_dir.is_dir() else []
    if as_json:
        print_json(
            {
                "up": False,
                "state_dir": str(places.state_dir),
                "healthy": False,
                "programs": [],
                "alerts": [],
                "left": left,
            }
        )
    elif left:
        pids = ", ".join(str(pid) for pid in left)
        print(f"the process manager is gone, processes {pids} are left: run `almanac up` or `almanac down`")
    else:
        print(f"the stack of {places.state_dir} is not up: run `almanac up`")
    return False


def _row(program: ProgramStatus) -> tuple[object, ...]:
    since = None
    if program.since is not None:
        since = f"{(utc_now() - program.since).total_seconds():.0f} s ago"
    verdict = "yes" if program.why_not is None else f"no: {program.why_not}"
    if program.waits_for is not None:
        verdict = "yes, waits"
    return (program.name, program.state, program.pid, since, program.restarts, program.address, verdict)


def print_addresses(places: Places, settings: Settings) -> None:
    """Where everything is, and where its passwords are; in lines that no narrow terminal cuts."""
    rows: list[tuple[str, str, str]] = []
    if settings.airflow_url:
        password = f"password in {airflow.passwords_file(places)}"
        rows.append(("Airflow UI", settings.airflow_url, f"user {settings.airflow_username}, {password}"))
    if settings.lookup_url:
        rows.append(("lookup", settings.lookup_url, ""))
    for label, name in (("PostgreSQL", "postgres"), ("Redis", "redis"), ("Kafka", "kafka")):
        if address := health.public_address(settings, name):
            rows.append((label, address, "" if name == "kafka" else f"user and password in {places.endpoints}"))
    if settings.monitor_url:
        rows.append(("monitor", settings.monitor_url, "metrics at /metrics, alerts at /alerts"))
    rows.append(("logs", str(places.logs), ""))
    width = max(len(where) for _, where, _ in rows)
    for label, where, how in rows:
        print(f"  {label:<12}{where:<{width + 2}}{how}".rstrip())
