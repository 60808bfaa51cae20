"""What is killed, and when all is well again after it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from almanac.airflow_api import RUN_FINISHED, AirflowApi
from almanac.clock import parse_time, utc_now
from almanac.errors import AlmanacError, Unavailable
from serving_cache.redis import RedisStore
from tests.chaos.events import CELLS, Events
from tests.chaos.stack import Stack, tasks_processes

TARGETS = ("lookup", "stream", "score", "publish", "scheduler")
WELL_SECONDS_MAX = 30.0
"""What is promised. Measured is until `MEASURED_SECONDS_MAX`, so that a breach has its figure."""
MEASURED_SECONDS_MAX = 180.0
POLL_SECONDS = 0.1
BETWEEN_SECONDS_MAX = 3.0
TASK_SECONDS_MAX = 1.5
RUN_KILL_SECONDS_MAX = 30.0
RUN_SECONDS_MAX = 600.0
WHOLE_TASK_SHARE = 0.25
RUN_KILLS_MAX: Mapping[str, int] = {"score": 4, "publish": 2, "scheduler": 3}
TASK_KILLS_MAX = 2
"""With those of the scheduler, which its tasks do not survive, no more than the retries that a task has."""
NAME = "weather"


@dataclass(frozen=True)
class Kill:
    """One kill: what, at which moment, and the seconds until all was well; why it was not, if it was not in time."""

    target: str
    moment: str
    seconds: float
    waited_for: str

    @property
    def in_time(self) -> bool:
        """Whether the promise was kept."""
        return self.seconds <= WELL_SECONDS_MAX


def until_well(target: str, moment: str, killed_at: float, missing: Callable[[], str | None]) -> Kill:
    """Wait until nothing is missing any more; `missing` says what is, or None."""
    last = ""
    while time.monotonic() - killed_at < MEASURED_SECONDS_MAX:
        try:
            found = missing()
        except AlmanacError as error:
            found = str(error)
        seconds = time.monotonic() - killed_at
        if found is None:
            return Kill(target, moment, seconds, last)
        last = found
        time.sleep(POLL_SECONDS)
    return Kill(target, moment, float("inf"), last)


def healthy(stack: Stack, program: str = "") -> str | None:
    """What keeps `almanac status` and a fresh lookup from being well, without other targets' kills."""
    if not stack.answers_fresh() and (program == "lookup" or "lookup" not in stack.killed):
        return "no fresh lookup"
    return next(iter(stack.unwell(program)), None)


def kill_lookup(stack: Stack, chance: random.Random) -> Kill:
    """The lookup service: well when it is up again and answers fresh."""
    return _kill_program("lookup", stack, chance, lambda: healthy(stack, "lookup"))


def kill_stream(stack: Stack, chance: random.Random, events: Events) -> Kill:
    """The stream worker: well when it is up again and an event sent after the kill has come to the overlays.

    In Redis, where lookups read them: an overlay by a model whose generation is still being made is not answered with.
    """
    cell = chance.randrange(CELLS)
    sent: list[datetime] = []

    def missing() -> str | None:
        if not sent:
            sent.append(events.send(cell))
        with RedisStore(stack.settings.need("redis_url")) as redis:
            overlays = redis.overlays(NAME, str(cell)).values()
        if not any(overlay.as_of >= sent[0] for overlay in overlays):
            return "the event sent after the kill is not among the overlays"
        return healthy(stack, "stream")

    return _kill_program("stream", stack, chance, missing)


def _kill_program(name: str, stack: Stack, chance: random.Random, missing: Callable[[], str | None]) -> Kill:
    wait = chance.uniform(0, BETWEEN_SECONDS_MAX)
    time.sleep(wait)
    pid = stack.pid(name)
    assert pid is not None, f"{name} does not run"
    stack.killed.add(name)
    os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()

    def gone() -> str | None:
        return f"{name} is not started again" if stack.pid(name) in (None, pid) else missing()

    try:
        return until_well(name, f"{wait:.2f} s after the last was well", killed_at, gone)
    finally:
        stack.killed.discard(name)


class Run:
    """One batch run with kills in it.

    Args:
        key: the partition key, the hour the run speaks for.
        wanted: the targets to be killed while it runs, and how often at most.
        note: told of each kill, when all is well again.
    """

    def __init__(
        self, stack: Stack, chance: random.Random, key: str, wanted: Mapping[str, int], note: Callable[[Kill], None]
    ) -> None:
        self._stack, self._chance, self._key = stack, chance, key
        self._left = dict(wanted)
        self._killed: Counter[tuple[str, int]] = Counter()
        self._api = AirflowApi(stack.settings)
        self._run = ""
        self._began = 0.0
        self.state = ""
        self._note = note

    def go(self) -> None:
        """Trigger it, kill, and follow it to its end; `state` is then Airflow's word."""
        with self._api:
            self._run = self._api.trigger(NAME, partition_key=self._key, note="chaos")
            self._began = time.monotonic()
            scheduler_at = self._began + self._chance.uniform(0, RUN_KILL_SECONDS_MAX)
            give_up_at = self._began + RUN_SECONDS_MAX
            while time.monotonic() < give_up_at:
                self.state = self._safely(lambda: self._api.run_state(NAME, self._run)) or self.state
                if self.state in RUN_FINISHED:
                    return
                if self._left.get("scheduler") and time.monotonic() > scheduler_at:
                    self._kill_scheduler()
                    scheduler_at = time.monotonic() + self._chance.uniform(0, RUN_KILL_SECONDS_MAX)
                for task in self._tasks():
                    who = task["task_id"], task["map_index"]
                    if task["state"] == "running" and self._left.get(who[0]) and self._killed[who] < TASK_KILLS_MAX:
                        self._kill_task(task)
                        break
                time.sleep(POLL_SECONDS)

    def _safely(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Unavailable:
            return None

    def _tasks(self) -> list[dict[str, Any]]:
        return list(self._safely(lambda: self._api.task_instances(NAME, self._run)) or [])

    def _kill_task(self, task: dict[str, Any]) -> None:
        time.sleep(self._chance.uniform(0, TASK_SECONDS_MAX))
        processes = tasks_processes(task["id"])
        if "task" not in processes:
            return  # it was quicker: the next one, or the next run
        whole = self._chance.random() < WHOLE_TASK_SHARE
        ran = (utc_now() - parse_time(task["start_date"])).total_seconds()
        for name in ("supervisor", "task") if whole and "supervisor" in processes else ("task",):
            os.kill(processes[name], signal.SIGKILL)
        killed_at = time.monotonic()
        self._left[task["task_id"]] -= 1
        self._killed[task["task_id"], task["map_index"]] += 1

        def missing() -> str | None:
            for found in self._tasks():
                if (found["task_id"], found["map_index"]) == (task["task_id"], task["map_index"]):
                    same = found["id"] == task["id"] and found["try_number"] == task["try_number"]
                    if same and found["state"] != "success":  # success: it had said so when it was killed
                        return f"{task['task_id']} is {found['state']}"
                    if found["state"] not in ("running", "success"):
                        return f"{task['task_id']} is {found['state']}, to be tried again"
                    return healthy(self._stack)
            return "Airflow's API does not answer"

        title = f"{ran:.2f} s into {task['task_id']}" + (", with its supervisor" if whole else "")
        self._note(until_well(task["task_id"], title, killed_at, missing))

    def _kill_scheduler(self) -> None:
        busy = [task["task_id"] for task in self._tasks() if task["state"] in ("running", "queued")]
        pid = self._stack.pid("airflow-scheduler")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        killed_at, moment = time.monotonic(), utc_now()
        self._left["scheduler"] -= 1
        self._stack.killed.add("airflow-scheduler")

        def missing() -> str | None:
            if self._stack.pid("airflow-scheduler") in (None, pid):
                return "the scheduler is not started again"
            state = self._safely(lambda: self._api.run_state(NAME, self._run))
            tasks = self._tasks()
            started = [t for t in tasks if t["start_date"] and parse_time(t["start_date"]) > moment]
            if state not in RUN_FINISHED and not started:
                return f"no task started again: {sorted({(t['task_id'], t['state']) for t in tasks if t['state']})}"
            return healthy(self._stack, "airflow-scheduler")

        title = f"{killed_at - self._began:.2f} s into the run, in {' and '.join(busy) or 'no task'}"
        self._note(until_well("scheduler", title, killed_at, missing))
        self._stack.killed.discard("airflow-scheduler")
