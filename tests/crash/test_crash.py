"""The short form of `make crash`: a death at every failpoint, a paused attempt, two publishers at once, under reads."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

from almanac.failpoints import NAMES

ROOT = Path(__file__).resolve().parents[2]
PUBLISHES = 20
LANES = 1


def test_deaths_at_named_moments_tear_nothing() -> None:
    command = [sys.executable, "-m", "tests.crash", "--publishes", str(PUBLISHES), "--lanes", str(LANES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == 0
    assert found["publishes"] >= PUBLISHES
    assert found["kills"] >= 1
    assert found["paused"] >= 1
    assert found["at_once"] >= 1
    assert found["unanswered"] < found["reads"]
    assert found["epochs_read"] >= 3


def test_a_run_that_is_ended_early_gives_its_verdict() -> None:
    command = [sys.executable, "-m", "tests.crash", "--lanes", str(LANES)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("SEED=")
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=500)
    assert running.returncode == 0, out + err
    assert json.loads(out.splitlines()[-1])["interrupted"]


def test_every_failpoint_is_somewhere_in_the_code() -> None:
    folders = ("almanac", "serving_cache", "jobs", "tests/crash")
    text = "".join(p.read_text() for folder in folders for p in (ROOT / folder).rglob("*.py") if p.stem != "failpoints")
    assert set(re.findall(r'passing\("([a-z.-]+)"\)', text)) == set(NAMES)
