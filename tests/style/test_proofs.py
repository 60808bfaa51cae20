"""What the documents quote is run by `make proofs`, and what fails there is said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import benchmarks
from tests.proofs.plan import MAKEFILE, Proof, aliases, commits, modules_by_target, proofs, quoted, rotated
from tests.proofs.run import run_all, run_one

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NAMES = {proof.name for proof in proofs()}
DRILLS = {target for target, modules in modules_by_target(MAKEFILE.read_text()).items() if modules}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_benchmark_and_drill_that_a_page_quotes_is_run(page: Path) -> None:
    text = page.read_text()
    run = {*NAMES, "proofs"}
    assert quoted(text, DRILLS) - run == set()
    named = aliases(MAKEFILE.read_text())
    assert {named[target] for target in named if f"make {target}" in text} <= NAMES


def test_a_page_that_quotes_what_is_not_there_is_noticed() -> None:
    page = (
        "see `make bench NAME=no-such`, `python -m benchmarks.neither` and `make crash PUBLISHES=5`, not `make crash-x`"
    )
    assert quoted(page, DRILLS) == {"bench no-such", "bench neither", "crash"}
    assert quoted("`make crash-x`", DRILLS) == set()


def test_every_benchmark_and_every_drill_is_a_proof() -> None:
    assert {f"bench {name.replace('_', '-')}" for name in benchmarks()} <= NAMES
    assert {"chaos", "crash", "simulate", "parity"} <= NAMES
    assert aliases(MAKEFILE.read_text())["replay"] in NAMES


def test_a_drill_that_is_added_to_the_makefile_becomes_one() -> None:
    makefile = "drill: setup\n\t@$(BIN)/python -m tests.drill $(NAME)\n\nlint: setup\n\t@ruff check .\n"
    assert modules_by_target(makefile) == {"drill": ["tests.drill"], "lint": []}


def test_ci_runs_them_after_the_tests() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-2:] == ["make test", "make proofs"]


def test_the_documents_name_the_limit_that_there_is() -> None:
    from tests.proofs.__main__ import MINUTES_MAX

    (minutes,) = re.findall(r"(\d+) minutes at most", (ROOT / ".ci" / "run").read_text())
    assert float(minutes) == MINUTES_MAX


def test_a_proof_that_fails_says_which_and_why() -> None:
    said: list[str] = []
    planned = [
        Proof("well", ("-c", "print('fine')")),
        Proof("ill", ("-c", "import sys; print('two Entities'); sys.exit(3)")),
        Proof("lacking", ("-c", "import sys; print('no checkout'); sys.exit(77)")),
    ]
    outcomes = run_all(planned, 60, said.append)
    assert [one.verdict for one in outcomes] == ["passed", "failed", "skipped"]
    assert "exit code 3" in outcomes[1].why
    assert "two Entities" in outcomes[1].why
    assert "no checkout" in "\n".join(said)


def test_a_proof_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    hangs = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"open({str(file)!r}, 'w').write(str(child.pid)); sys.exit(0 if child.pid else 1)"
    )
    outcome = run_one(Proof("leaves one behind", ("-c", hangs)), 60)
    assert outcome.verdict == "passed"
    child = int(file.read_text())
    assert not _alive(child)
    outcome = run_one(Proof("hangs", ("-c", "import time; time.sleep(600)")), 0.5)
    assert (outcome.verdict, "not ended after" in outcome.why) == ("failed", True)


def test_a_proof_that_leaves_a_daemon_running_has_failed() -> None:
    daemon = "import subprocess, sys; subprocess.Popen(['sleep', '600'], start_new_session=True)"
    code = (
        "from tests.proofs.orphans import Orphans; from tests.proofs.plan import Proof;"
        "from tests.proofs.run import run_all; orphans = Orphans();"
        f"(one,) = run_all([Proof('d', ('-c', {daemon!r}))], 60, print, orphans);"
        "assert 'left 1 processes running' in one.why, one; assert orphans.end() == 0"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_there_is_no_time_for_is_said_to_be_not_run() -> None:
    said: list[str] = []
    (outcome,) = run_all([Proof("late", ("-c", ""))], 0, said.append)
    assert outcome.verdict == "not run"
    assert "late" in said[0]
    (outcome,) = run_all([Proof("cut off", ("-c", "import time; time.sleep(600)"))], 0.5, said.append)
    assert (outcome.verdict, outcome.cut_off) == ("not run", True)


def test_each_commit_begins_at_another_proof_and_runs_all() -> None:
    planned = proofs()
    begun = {rotated(planned, number)[0] for number in range(len(planned))}
    assert begun == set(planned)
    assert sorted(one.name for one in rotated(planned, 7)) == sorted(NAMES)
    assert commits() > 0


def test_a_name_that_is_none_is_refused_with_those_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.proofs", "no-such"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "there is no proof named 'no-such'" in done.stderr
    assert "bench batch-shop" in done.stderr


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
    finally:
        assert os.getpid() != pid


QUOTED = re.compile(r"make ([a-z-]+)((?: [A-Z_]+=(?:\"[^\"]*\"|[^\s`\"]+))+)")
"""A quoted command with its variables: the target, and ` NAME=batch ARGS="--rows 39"`."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_that_a_page_gives_to_make_are_read_by_the_target(page: Path) -> None:
    makefile = MAKEFILE.read_text()
    for target, variables in QUOTED.findall(page.read_text()):
        recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.M)
        assert recipe is not None, f"make has no target {target}"
        for name in re.findall(r"([A-Z_]+)=", variables):
            assert f"$({name})" in recipe[1], f"make {target} does not read {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_a_page_gives_to_a_benchmark_are_its_own(page: Path) -> None:
    for _, variables in QUOTED.findall(page.read_text()):
        named = re.search(r"NAME=([a-z-]+)", variables)
        options = re.findall(r"(--[a-z-]+)", variables)
        if named is None or not options:
            continue
        module = ROOT / "benchmarks" / f"{named[1].replace('-', '_')}.py"
        read = module.read_text() + (ROOT / "benchmarks" / "measuring.py").read_text()
        for option in options:
            assert f'"{option}"' in read, f"make bench NAME={named[1]} has no option {option}"
