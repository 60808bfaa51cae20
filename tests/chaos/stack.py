"""A whole stack of one's own, seen from outside: commands, processes, health."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil

from almanac.errors import AlmanacError
from almanac.settings import Settings, load_settings
from almanac.stack import health
from almanac.stack.places import Places
from almanac.stack.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[2]
DECLARATION = Path(__file__).with_name("chaotic_weather.py")
COMMAND_SECONDS_MAX = 300
REQUEST_SECONDS_MAX = 5.0


class Stack:
    """`almanac up` in a state directory of its own, with the chaotic pipeline.

    Args:
        state_dir: new, or left by an earlier run.
    """

    def __init__(self, state_dir: Path) -> None:
        self.places = Places.of(state_dir)
        os.environ["ALMANAC_STATE_DIR"] = str(self.places.state_dir)
        os.environ["ALMANAC_PIPELINES"] = str(DECLARATION)
        os.environ["PYTHONPATH"] = str(ROOT)
        self._settings: Settings | None = None
        self.killed: set[str] = set()
        """Programs that a kill is just waiting for; another target's kill does not wait for them as well."""

    def almanac(self, *words: str, stdin: str | None = None) -> str:
        """Run a command of `almanac`; its standard output.

        Raises:
            RuntimeError: it did not exit with 0.
        """
        done = subprocess.run(
            [sys.executable, "-m", "almanac.cli", *words], cwd=ROOT, input=stdin, capture_output=True, text=True,
            timeout=COMMAND_SECONDS_MAX, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"almanac {' '.join(words)} exited {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def up(self) -> None:
        """Start everything."""
        self.almanac("up", "--detach")

    def down(self) -> None:
        """Stop everything; the data stays."""
        self.almanac("down")

    @property
    def settings(self) -> Settings:
        """The settings with the addresses of this stack; they stay the same while it is up."""
        if self._settings is None:
            self._settings = load_settings(state_dir=self.places.state_dir)
        return self._settings

    def unwell(self, besides: str = "") -> list[str]:
        """What `almanac status` would show as not healthy, without programs that were killed `besides` this one."""
        try:
            found = health.survey(self.places, self.settings)
        except AlmanacError as error:
            return [str(error)]
        return [
            f"{program.name}: {program.why_not}"
            for program in found
            if program.why_not is not None and program.name not in self.killed - {besides}
        ]

    def pid(self, program: str) -> int | None:
        """The process of a program, if it has one."""
        return Supervisor(self.places).state(program).pid

    def ask(self, path: str, **arguments: Any) -> dict[str, Any] | None:
        """One answer of the lookup; None while it refuses or is away."""
        try:
            answer = httpx.get(f"{self.settings.need('lookup_url')}{path}", timeout=REQUEST_SECONDS_MAX, **arguments)
            return dict(answer.json()) if answer.status_code == 200 else None
        except (httpx.HTTPError, json.JSONDecodeError):
            return None

    def answers_fresh(self) -> bool:
        """Whether a lookup is answered, and fresh."""
        found = self.ask("/v1/weather/entities/17")
        return found is not None and found["verdict"] == "fresh"


def tasks_processes(task_instance: str) -> dict[str, int]:
    """The processes of one Airflow task: `task` runs the code, `supervisor` speaks for it to Airflow."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("airflow worker -- ") and title.rstrip().endswith(task_instance):
            found["supervisor" if "Executor" in title else "task"] = process.pid
    return found
