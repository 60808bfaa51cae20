"""What Airflow's scheduler does when an hour turns, for a clock that only Almanac's own processes follow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from pathlib import Path

from almanac.airflow_api import AirflowApi
from almanac.clock import HOUR, PARTITION_KEY_FORMAT, floor_hour
from almanac.errors import AlmanacError
from almanac.settings import Settings
from tests.turn import clock

POLL_SECONDS = 0.5
UNDER_WAY_SECONDS_MAX = 20.0


class Scheduler:
    """Starts a run of every DAG at each tick: at once, or when the DAG is unpaused, then of the newest tick alone.

    Args:
        clock_file: what the processes' clocks follow.
        settings: of the stack, once it has addresses.
        tags: of the DAGs.
    """

    def __init__(self, clock_file: Path, settings: Callable[[], Settings], tags: Collection[str]) -> None:
        self._file = clock_file
        self._settings = settings
        self._tags = sorted(tags)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._tick: datetime | None = None
        self._started: dict[str, datetime] = {}
        self.runs: list[tuple[str, str]] = []
        self.turns = 0
        self.under_way = 0
        """At how many turns something was at work already."""
        self._thread = threading.Thread(target=self._follow, name="turning-scheduler", daemon=True)
        self._thread.start()

    def turn(self) -> None:
        """An hour turns: a run of each pipeline is under way, if Airflow begins any; then it is the next hour."""
        with self._lock:
            self._begin_one()
            now = self._now()
            clock.write(self._file, clock.read(self._file) + (floor_hour(now) + HOUR - now).total_seconds())
            self.turns += 1
            self._tick = floor_hour(now) + HOUR

    def end(self) -> None:
        """Start nothing any more."""
        self._ended.set()
        self._thread.join()

    def _now(self) -> datetime:
        return clock.machine_now() + timedelta(seconds=clock.read(self._file))

    def _begin_one(self) -> None:
        try:
            with AirflowApi(self._settings()) as airflow:
                due = self._due(airflow)
                for dag in due:
                    if self._is_partitioned(dag) and not airflow.at_work([dag]):
                        self._trigger(airflow, dag, floor_hour(self._now()))
                give_up_at = time.monotonic() + UNDER_WAY_SECONDS_MAX
                while due and time.monotonic() < give_up_at:
                    if airflow.at_work(due):
                        self.under_way += 1
                        return
                    time.sleep(POLL_SECONDS)
        except AlmanacError:
            pass  # the stack is not there yet, or not any more: then nothing is under way

    def _follow(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            with self._lock:
                if self._tick is None:
                    continue
                try:
                    with AirflowApi(self._settings()) as airflow:
                        for dag in self._due(airflow):
                            if self._started.get(dag) != self._tick:
                                self._trigger(airflow, dag, self._tick)
                                self._started[dag] = self._tick
                except AlmanacError:
                    continue  # at the next look

    def _due(self, airflow: AirflowApi) -> list[str]:
        """The DAGs that are not paused, and follow the clock rather than an asset."""
        asked = {"tags": self._tags, "has_asset_schedule": False, "paused": False}
        return [str(entry["dag_id"]) for entry in airflow.call("GET", "/dags", params=asked)["dags"]]

    def _is_partitioned(self, dag: str) -> bool:
        return any(tag.endswith(f":{dag}") for tag in self._tags)

    def _trigger(self, airflow: AirflowApi, dag: str, tick: datetime) -> None:
        key = tick.strftime(PARTITION_KEY_FORMAT) if self._is_partitioned(dag) else None
        self.runs.append((dag, airflow.trigger(dag, partition_key=key, note="as scheduled")))
