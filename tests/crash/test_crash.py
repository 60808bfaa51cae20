"""The short form of `make crash`: a death at every failpoint, a paused attempt, two publishers at once, under reads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from almanac.failpoints import NAMES

ROOT = Path(__file__).resolve().parents[2]
PUBLISHES = 24


def test_deaths_at_named_moments_tear_nothing() -> None:
    command = [sys.executable, "-m", "tests.crash", "--publishes", str(PUBLISHES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == 0
    assert found["publishes"] >= PUBLISHES
    assert found["kills"] >= 5
    assert found["paused"] + found["at_once"] >= 1
    assert found["epochs_read"] >= 3


def test_every_failpoint_is_somewhere_in_the_code() -> None:
    folders = ("almanac", "serving_cache", "jobs", "tests/crash")
    text = "".join(p.read_text() for folder in folders for p in (ROOT / folder).rglob("*.py") if p.stem != "failpoints")
    assert set(re.findall(r'passing\("([a-z.-]+)"\)', text)) == set(NAMES)
