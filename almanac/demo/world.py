"""The demonstration's hands: commands, HTTP requests, waiting with a limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from almanac.airflow_api import AirflowApi
from almanac.airflow_pause import dags_paused
from almanac.declarations import pipeline as declared
from almanac.demo.report import DemoFailed, Report
from almanac.errors import Unavailable
from almanac.settings import Settings, load_settings

COMMAND_TIMEOUT_SECONDS = 1_800.0
REQUEST_TIMEOUT_SECONDS = 10.0
DAG_PARSED_SECONDS = 90.0
POLL_SECONDS = 0.1
ENTITIES_PER_REQUEST = 1000

T = TypeVar("T")


@dataclass
class World:
    """One state directory with its stack, seen from outside."""

    state_dir: Path
    data: Path | None
    report: Report
    pipeline: str = "weather"
    declared: Path | None = None
    """A file that declares the pipeline; None for those of the checkout."""
    keep: bool = False
    """Whether the stack is to run on afterwards, whole."""
    running: bool = False
    """Whether the stack that runs is used with the model that it has, rather than one made anew."""
    seen: str | None = None
    """The last answer, or why there was none: what a wait in vain is explained with."""

    @property
    def variables(self) -> dict[str, str]:
        """What every command's environment has of its own: this state directory, this source, this declaration."""
        found = {"ALMANAC_STATE_DIR": str(self.state_dir)}
        if self.data is not None:
            found["ALMANAC_SOURCE_DATA"] = f"{self.pipeline}={self.data}"
        if self.declared is not None:
            found["ALMANAC_PIPELINES"] = os.environ.get("ALMANAC_PIPELINES", str(self.declared))
        return found

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every command."""
        return {**os.environ, **self.variables}

    @property
    def settings(self) -> Settings:
        """The settings as they are now, with the addresses `almanac up` wrote down."""
        return load_settings(state_dir=self.state_dir)

    def run(self, *words: str, stdin: str | None = None, show: bool = False, check: bool = True) -> str:
        """Run `almanac <words>`; its standard output.

        Raises:
            DemoFailed: it exited non-zero; carries the last line of its standard error.
        """
        try:
            done = subprocess.run(
                [sys.executable, "-m", "almanac.cli", *words],
                env=self.environment,
                input=stdin,
                stdout=None if show else subprocess.PIPE,
                stderr=None if show else subprocess.PIPE,
                text=True,
                timeout=COMMAND_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"`almanac {' '.join(words)}` took longer than {COMMAND_TIMEOUT_SECONDS:.0f} s") from None
        if check and done.returncode != 0:
            lines = (done.stderr or "").strip().splitlines()
            raise DemoFailed(
                f"`almanac {' '.join(words)}` exited {done.returncode}: {lines[-1] if lines else 'see above'}"
            )
        return done.stdout or ""

    def json(self, *words: str) -> Any:
        """Run `almanac <words> --json` and parse what it printed."""
        return json.loads(self.run(*words, "--json"))

    def ask(self, path: str, **parameters: Any) -> httpx.Response:
        """GET from the lookup service."""
        return httpx.get(
            f"{self.settings.need('lookup_url')}{path}", params=parameters or None, timeout=REQUEST_TIMEOUT_SECONDS
        )

    def answer(self, entity: int | str, **parameters: Any) -> dict[str, Any]:
        """The answer for one entity.

        Raises:
            DemoFailed: the service refused.
        """
        found = self.ask(f"/v1/{self.pipeline}/entities/{quote(str(entity), safe='')}", **parameters)
        if found.status_code != 200:
            self.seen = f"lookup of {entity} was refused ({found.status_code}): {found.text[:300]}"
            raise DemoFailed(self.seen)
        answer = dict(found.json())
        self.seen = f"{brief(answer)}, {answer['reason'] or 'no remark'}"
        return answer

    def answers(self, cells: int) -> dict[int, dict[str, Any]]:
        """The answers for every cell of a grid, by cell."""
        found: dict[int, dict[str, Any]] = {}
        for start in range(0, cells, ENTITIES_PER_REQUEST):
            asked = list(range(start, min(start + ENTITIES_PER_REQUEST, cells)))
            response = httpx.post(
                f"{self.settings.need('lookup_url')}/v1/weather/entities:lookup",
                json={"entities": asked},
                timeout=REQUEST_TIMEOUT_SECONDS,
            )
            if response.status_code != 200:
                raise DemoFailed(
                    f"lookup of {len(asked)} cells was refused ({response.status_code}): {response.text[:300]}"
                )
            for one in response.json()["answers"]:
                found[int(one["entity"])] = one
        return found

    @contextmanager
    def stillness(self, why: str) -> Iterator[None]:
        """Airflow runs nothing of the pipeline inside: a claim is made that a run would have nothing to do with."""
        with AirflowApi(self.settings) as airflow:
            self.wait_for(
                "Airflow parsing the DAGs",
                lambda: airflow.has_dag(self.pipeline) or None,
                seconds=DAG_PARSED_SECONDS,
            )
        self.report.say(f"the schedule is held {why}")
        with dags_paused(self.settings, [declared(self.pipeline)], self.report.say):
            yield
        self.report.say("the schedule goes on")

    def wait_for(self, what: str, probe: Callable[[], T | None], *, seconds: float) -> T:
        """Poll until the probe gives something.

        Raises:
            DemoFailed: it gave nothing within the limit; says what the last answer was, if answers were waited for.
        """
        self.seen = None
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = probe()
            except (httpx.HTTPError, DemoFailed, Unavailable):
                found = None
            if found is not None:
                return found
            if time.monotonic() > deadline:
                last = f"; the last answer: {self.seen}" if self.seen else ""
                raise DemoFailed(f"{what} did not happen within {seconds:.0f} s{last}")
            time.sleep(POLL_SECONDS)


def brief(answer: dict[str, Any]) -> str:
    """An answer in a line: how fresh, from where, how old."""
    if answer["as_of"] is None:
        return f"{answer['verdict']}, source {answer['source']}"
    clock = f", {answer['clock']}" if answer.get("clock") else ""
    return (
        f"{answer['verdict']}, source {answer['source']} from {answer['place']}, as of {answer['as_of']}, "
        f"age {answer['age_seconds']:.0f} s, model {answer['model']}{clock}"
    )
