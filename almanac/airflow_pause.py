"""Airflow's DAGs of some pipelines, paused while somebody needs that no run moves what these pipelines serve.

Every DAG that may move a pipeline's generation, features or model has the pipeline's tag: those of `dags/`, and those
of other authors who give it to theirs. So the set is Airflow's own answer, and no list.

Airflow starts neither runs nor tasks of a paused DAG. A run that waits stays queued, and a run that is under way stops
between two tasks, and both go on when the DAG is unpaused. What is at work when the DAG is paused is let end.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from almanac.airflow_api import AirflowApi
from almanac.closing import Closing
from almanac.errors import Unavailable, UsageError
from almanac.pipeline import Pipeline
from almanac.settings import Settings, load_settings

ENDING_SECONDS_MAX = 600.0
"""How long tasks that were at work when their DAGs were paused may take to end."""
AWAY_SECONDS_MAX = 60.0
"""How long Airflow may give no answer about what is at work, until waiting for that is given up."""
UNPAUSING_SECONDS_MAX = 60.0
"""How long it is tried to unpause DAGs while Airflow does not answer."""
POLL_SECONDS = 0.5
LOOKS = 2
"""So many looks must find nothing at work: the scheduler may have chosen a task just before its DAG was paused."""
NAMED_MAX = 5
MISSED = "its asset was updated while it was paused"
REACHED_BY = ("airflow_url", "airflow_username", "airflow_password")
SIGNALS = (signal.SIGTERM, signal.SIGHUP)

Say = Callable[[str], None]


class Guard(Closing):
    """A process of its own that unpauses what this process paused, should this one be killed."""

    def __init__(self, settings: Settings) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # what ends a terminal's processes does not end it
        )
        self._write({name: getattr(settings, name) for name in REACHED_BY})

    def tell(self, paused: dict[str, int]) -> None:
        """What would have to be unpaused now, with the asset event of each that was the newest before."""
        self._write(paused)

    def close(self) -> None:
        """Nothing is to be unpaused any more."""
        self.tell({})
        self._process.communicate()

    def _write(self, value: dict[str, Any]) -> None:
        if self._process.stdin is None:
            return
        with suppress(OSError):  # somebody has ended it: then this process undoes what it does, or nobody
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()


class PausedDags:
    """The DAGs of some pipelines, and which of them this object paused.

    Args:
        airflow: stays the caller's.
        pipelines: whose DAGs.
        say: gets a sentence whenever somebody should know what happens.
        guard: is told what is paused.
    """

    def __init__(
        self, airflow: AirflowApi, pipelines: Collection[Pipeline], say: Say, guard: Guard | None = None
    ) -> None:
        self._airflow = airflow
        self._guard = guard
        self._tags = sorted(pipeline.dag_tag for pipeline in pipelines)
        self._say = say
        self._known: set[str] = set()
        self._paused: dict[str, int] = {}
        self._away = False

    def pause(self) -> None:
        """Pause every DAG that is not paused, and let end what is at work.

        Raises:
            Unavailable: Airflow does not answer, or tasks are still at work after `ENDING_SECONDS_MAX`.
        """
        self._pause(self._airflow.paused_by_dag(self._tags))
        if self._paused:
            self._say(f"Airflow's DAGs {', '.join(self._paused)} are paused; what is under way goes on afterwards")
        self._let_end()

    def check(self) -> None:
        """See that all are still paused, pause what Airflow has parsed since, and let end what is at work.

        An Airflow that does not answer is said, and believed to keep its DAGs paused: that is in its database.

        Raises:
            UsageError: somebody has unpaused one.
            Unavailable: tasks are still at work after `ENDING_SECONDS_MAX`.
        """
        try:
            found = self._airflow.paused_by_dag(self._tags)
        except Unavailable as error:
            if not self._away:
                self._say(f"{error}; its DAGs were paused before, and this goes on")
            self._away = True
            return
        self._away = False
        unpaused = [dag for dag, paused in found.items() if dag in self._known and not paused]
        if unpaused:
            for dag in unpaused:
                self._paused.pop(dag, None)
            self._tell()
            raise UsageError(
                f"somebody unpaused {_listed(unpaused)} in Airflow meanwhile, and its runs move what must stand "
                "still: leave it paused, and begin again"
            )
        self._pause(found)
        self._let_end()

    def unpause(self) -> list[str]:
        """Unpause what this object paused, and run what an asset would have started meanwhile.

        Returns:
            The DAGs that could not be unpaused, because Airflow did not answer.
        """
        deadline = time.monotonic() + UNPAUSING_SECONDS_MAX
        try:
            while self._paused:
                dag, newest = next(iter(self._paused.items()))
                try:
                    self._airflow.set_paused(dag, False)
                    if self._airflow.newest_asset_event(dag) > newest:  # Airflow has forgotten to run it for that
                        self._airflow.trigger(dag, partition_key=None, note=MISSED)
                    del self._paused[dag]
                except Unavailable:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(POLL_SECONDS)
                except UsageError as error:  # it is not there any more, or does not run
                    self._say(f"{dag} is left as it is: {error}")
                    del self._paused[dag]
        finally:  # somebody who will not wait is told, too
            if self._paused:
                self._say(f"not unpaused, for Airflow did not answer: {_listed(self._paused)}; do it in its UI")
            self._tell()
        return list(self._paused)

    def take_over(self, paused: dict[str, int]) -> None:
        """Be responsible for what another process paused."""
        self._paused = dict(paused)

    def _tell(self) -> None:
        if self._guard is not None:
            self._guard.tell(self._paused)

    def _pause(self, found: dict[str, bool]) -> None:
        for dag, paused in found.items():
            self._known.add(dag)
            if not paused:
                self._paused[dag] = self._airflow.newest_asset_event(dag)
                self._tell()
                self._airflow.set_paused(dag, True)

    def _let_end(self) -> None:
        deadline = time.monotonic() + ENDING_SECONDS_MAX
        said: list[str] = []
        nothing, answered = 0, time.monotonic()
        while nothing < LOOKS and self._known:
            try:
                at_work = self._airflow.at_work(sorted(self._known))
            except Unavailable:  # one answer that is late says nothing of what is at work
                if time.monotonic() - answered > AWAY_SECONDS_MAX:
                    raise
                time.sleep(POLL_SECONDS)
                continue
            answered = time.monotonic()
            nothing = 0 if at_work else nothing + 1
            if at_work and time.monotonic() > deadline:
                raise Unavailable(
                    f"{_listed(at_work)} did not end within {ENDING_SECONDS_MAX:.0f} s of pausing: wait until it has "
                    "ended, or mark it failed in the Airflow UI, then begin again"
                )
            if at_work and at_work != said:
                self._say(f"waiting for what is at work to end: {_listed(at_work)}")
                said = at_work
            if nothing < LOOKS:
                time.sleep(POLL_SECONDS)


@contextmanager
def dags_paused(settings: Settings, pipelines: Collection[Pipeline], say: Say) -> Iterator[PausedDags]:
    """Airflow moves nothing of these pipelines inside; what was paused is unpaused again, whatever ends it.

    Raises:
        Unavailable: Airflow does not answer when it begins, or at its end, or tasks do not end in time.
    """
    with _ended_by_signals(), AirflowApi(settings) as airflow, Guard(settings) as guard:
        dags = PausedDags(airflow, pipelines, say, guard)
        try:
            dags.pause()
            yield dags
        except BaseException:
            dags.unpause()  # says what it could not do: the error goes first
            raise
        if left := dags.unpause():
            raise Unavailable(f"all is done, but Airflow does not answer: unpause {_listed(left)} in its UI")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A signal that ends the process raises `SystemExit`, so that what must be undone is."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:  # who ignores one, as nohup does, goes on ignoring it
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listed(names: Collection[str]) -> str:
    shown = list(names)[:NAMED_MAX]
    return ", ".join(shown) + (f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else "")


def main() -> None:
    """The guard: wait until the other process has ended, then unpause what it left."""
    reached = json.loads(sys.stdin.readline() or "{}")
    paused: dict[str, int] = {}
    for line in sys.stdin:
        paused = json.loads(line)
    if paused:
        with AirflowApi(load_settings(**reached)) as airflow:
            dags = PausedDags(airflow, [], lambda text: print(text, file=sys.stderr))
            dags.take_over(paused)
            dags.unpause()


if __name__ == "__main__":
    main()
