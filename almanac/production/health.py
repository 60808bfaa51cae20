"""Is the program of this container healthy? `python -m almanac.production.health PROGRAM`; exits 0 or 1 with a line.

Asks what `almanac status` asks: the process itself over HTTP, or Airflow's own report.
"""

from __future__ import annotations

import argparse
import http.client
import sys
from collections.abc import Mapping

from almanac.errors import AlmanacError, UsageError
from almanac.settings import Settings, load_settings
from almanac.stack import airflow

ANSWER_SECONDS_MAX = 4.0
REASON_CHARACTERS_MAX = 300
# The setting with the port on which a program of ours says whether it can do its work.
PORTS: Mapping[str, str] = {
    "lookup": "lookup_port",
    "stream": "metrics_port",
    "reconciler": "metrics_port",
    "monitor": "metrics_port",
}
PROGRAMS = (*airflow.ARGUMENTS, *PORTS)
UNHEALTHY = 1


def why_not(program: str, settings: Settings) -> str | None:
    """Ask a program; None when healthy, else the reason.

    Raises:
        UsageError: the settings do not say where it listens.
    """
    if program in airflow.ARGUMENTS:
        return airflow.why_not(settings.need("airflow_url"), program, None)
    port = getattr(settings, PORTS[program])
    if port is None:
        raise UsageError(f"no port of {program} is known: set ALMANAC_{PORTS[program].upper()}")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS_MAX)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read(REASON_CHARACTERS_MAX).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"port {port} does not answer ({error or type(error).__name__})"
    finally:
        connection.close()
    return None if answer.status == 200 else f"/readyz answered {answer.status}: {body.strip()}"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and ask; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m almanac.production.health", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("program", choices=PROGRAMS)
    program = parser.parse_args(arguments).program
    try:
        reason = why_not(program, load_settings())
    except AlmanacError as error:
        reason = str(error)
    print(f"{program} is healthy" if reason is None else f"{program}: {reason}")
    return 0 if reason is None else UNHEALTHY


if __name__ == "__main__":
    sys.exit(main())
