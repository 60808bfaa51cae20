"""Which proofs there are, derived from what can be run, and which of them the documents quote."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.__main__ import benchmarks

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = ROOT / "Makefile"
OWN_TARGET = "proofs"
QUICK = "--quick"


@dataclass(frozen=True)
class Proof:
    """A benchmark or drill: the words that name it in a document, and those that run its shortest form.

    Args:
        name: `bench batch-shop`, or a drill's target such as `crash`.
        words: for this Python.
    """

    name: str
    words: tuple[str, ...]


def proofs() -> list[Proof]:
    """Every benchmark that `make bench` lists, and every target of the Makefile that runs a module of tests."""
    measured = [
        Proof(f"bench {name.replace('_', '-')}", ("-W", "ignore", "-m", "benchmarks", name, QUICK))
        for name in benchmarks()
    ]
    drills = [
        Proof(target, ("-m", modules[0], QUICK))
        for target, modules in modules_by_target(MAKEFILE.read_text()).items()
        if modules and target != OWN_TARGET
    ]
    return [*drills, *measured]


def rotated(planned: Sequence[Proof], begin: int) -> list[Proof]:
    """The same proofs in the same order, from another one on."""
    first = begin % len(planned)
    return [*planned[first:], *planned[:first]]


def commits() -> int:
    """How many commits led to this tree; 0 where git does not say."""
    done = subprocess.run(["git", "rev-list", "--count", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else 0


def modules_by_target(makefile: str) -> dict[str, list[str]]:
    """Each target of a Makefile with the modules of tests that its recipe runs (`-m tests.crash`)."""
    return {target: re.findall(r"-m (tests\.[a-z_.]+)", recipe) for target, recipe in _recipes(makefile)}


def aliases(makefile: str) -> dict[str, str]:
    """Targets that run one benchmark by its name (`-m benchmarks replay`), with that proof's name."""
    named = ((target, re.search(r"-m benchmarks ([a-z_]+)", recipe)) for target, recipe in _recipes(makefile))
    return {target: f"bench {run[1].replace('_', '-')}" for target, run in named if run}


def _recipes(makefile: str) -> Iterator[tuple[str, str]]:
    parts = re.split(r"^([a-z-]+):", makefile, flags=re.M)[1:]
    yield from zip(parts[::2], parts[1::2], strict=True)


def quoted(page: str, targets: Iterable[str]) -> set[str]:
    """The proofs that a page names: benchmarks by `make bench NAME=…` or `benchmarks.…`, drills by `make <target>`.

    Args:
        page: its text.
        targets: of the Makefile that run a proof.
    """
    named = {f"bench {name}" for name in re.findall(r"make bench NAME=([a-z][a-z_-]*)", page)}
    named |= {f"bench {name.replace('_', '-')}" for name in re.findall(r"-m benchmarks[. ]([a-z_]+)", page)}
    return named | {target for target in targets if re.search(rf"make {target}\b(?!-)", page)}
