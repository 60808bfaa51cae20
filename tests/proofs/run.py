"""Run proofs one after the other, each within a limit and all within another, and say what became of each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO

from tests.long_runs import SKIPPED
from tests.proofs.orphans import GONE_SECONDS_MAX, Orphans
from tests.proofs.plan import ROOT, Proof

PROOF_SECONDS_MAX = 600.0
END_SECONDS_MAX = 90.0
"""From SIGTERM, at which a proof ends its servers, to SIGKILL for its whole process group."""
POLL_SECONDS = 0.05
LINES_SHOWN_MAX = 25


@dataclass(frozen=True)
class Outcome:
    """What became of a proof: `passed`, `failed`, `skipped` or `not run`, after how many seconds, and why."""

    name: str
    verdict: str
    seconds: float
    why: str = ""
    cut_off: bool = False


def run_all(
    planned: Sequence[Proof], seconds_max: float, say: Callable[[str], None], orphans: Orphans | None = None
) -> list[Outcome]:
    """Run each, one after the other; those for which no time is left are `not run`.

    Args:
        planned: what to run.
        seconds_max: for all together.
        say: is given a line for each, and the last lines of what did not pass.
        orphans: where given, a proof that leaves processes running has failed, and they are ended.
    """
    began, outcomes = time.monotonic(), list[Outcome]()
    for proof in planned:
        left = seconds_max - (time.monotonic() - began)
        if left <= 0:
            outcome = Outcome(proof.name, "not run", 0.0, f"    {seconds_max:.0f} s were over")
        else:
            outcome = run_one(proof, min(left, PROOF_SECONDS_MAX), orphans)
            if outcome.cut_off and left < PROOF_SECONDS_MAX:  # it is not this one that took the time
                outcome = replace(outcome, verdict="not run")
        outcomes.append(outcome)
        say(f"{outcome.verdict:<8}{outcome.seconds:6.1f} s  {outcome.name}")
        if outcome.why:
            say(outcome.why)
    return outcomes


def run_one(proof: Proof, seconds_max: float, orphans: Orphans | None = None) -> Outcome:
    """Run a proof in a process group of its own; nothing of the group is left afterwards."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, *proof.words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            while (code := process.poll()) is None and time.monotonic() - began < seconds_max:
                if orphans is not None:
                    orphans.reap(process.pid)
                time.sleep(POLL_SECONDS)
        finally:
            _end(process)
            left_running = orphans.end() if orphans is not None else 0
        seconds = time.monotonic() - began
        shown = _last_lines(output)
        if code == SKIPPED:
            return Outcome(proof.name, "skipped", seconds, shown)
        if code is None:
            why = f"not ended after {seconds_max:.0f} s"
        elif code != 0:
            why = f"exit code {code}"
        elif left_running:
            why = f"left {left_running} processes running, which were ended"
        else:
            return Outcome(proof.name, "passed", seconds)
        said = f"{why}: python {' '.join(proof.words)}\n{shown}"
        return Outcome(proof.name, "failed", seconds, said, cut_off=code is None)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process by SIGTERM, so that it stops its servers, then what is left of its group."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS_MAX)
    give_up_at = time.monotonic() + GONE_SECONDS_MAX
    with suppress(ProcessLookupError):
        while time.monotonic() < give_up_at:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(POLL_SECONDS)
    process.wait()


def _last_lines(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").rstrip().splitlines()
    return "\n".join(f"    {line}" for line in lines[-LINES_SHOWN_MAX:])
