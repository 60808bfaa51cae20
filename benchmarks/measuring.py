"""What all benchmarks share: pinned cores, rounds in turn, medians, profiles, and the JSON line at the end.

Servers (Postgres, Redis, Kafka) get one core, the process that is measured gets
another; what asks questions of it shares the servers' core. With one core all
share it, and the JSON line says so. A ratio above 1 is better for Almanac:
rates are ours over theirs, times are theirs over ours.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import pstats
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROUNDS_MAX = 20
PROFILE_LINES_MAX = 25
DIGITS = 4  # significant, in the JSON line


@dataclass(frozen=True, kw_only=True)
class Cores:
    """Which core is whose."""

    servers: int
    measured: int

    @classmethod
    def choose(cls) -> Cores:
        """The first and the last core that this process may use."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(servers=usable[0], measured=usable[-1])


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run, and start processes, on one core; afterwards this thread may use the cores it could use before."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every benchmark can be asked.

    Args:
        quick: a small world and one round: shows that the benchmark works, not how fast anything is.
        rounds: how often each contender has its turn.
        peers: whether peers run; they need an installation of their own at the first use.
        profile: say where the time of ours goes instead of measuring.
        rows: size of the world; 0 for the benchmark's own.
        parts: which parts to run, of a benchmark that has some; none for all.
    """

    quick: bool
    rounds: int
    peers: bool
    profile: bool
    rows: int
    parts: tuple[str, ...] = ()

    def size(self, full: int, quick: int) -> int:
        """The asked size, or the benchmark's own."""
        return self.rows or (quick if self.quick else full)


def options(description: str | None, *, rounds: int, parts: Sequence[str] = ()) -> Options:
    """Read the command line; `ALMANAC_BENCH_QUICK=1` is the same as `--quick`. `parts`: what `--part` may name."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="small and once: does it work? Not a measurement")
    parser.add_argument("--rounds", type=int, default=0, help=f"turns of each contender (default {rounds})")
    parser.add_argument("--rows", type=int, default=0, help="rows, cells or events (default: see above)")
    parser.add_argument("--no-peers", action="store_true", help="leave out what needs an installation of its own")
    parser.add_argument("--profile", action="store_true", help="print where our time goes, and measure nothing else")
    if parts:
        parser.add_argument("--part", action="append", choices=parts, help="run this part (again for more of them)")
    given = parser.parse_args()
    quick = given.quick or os.environ.get("ALMANAC_BENCH_QUICK") == "1"
    chosen = given.rounds or (1 if quick else rounds)
    return Options(
        quick=quick,
        rounds=min(max(chosen, 1), ROUNDS_MAX),
        peers=not given.no_peers,
        profile=given.profile,
        rows=max(given.rows, 0),
        parts=tuple(getattr(given, "part", None) or ()),
    )


Measure = Callable[[], Mapping[str, Any]]


def in_turn(contenders: Mapping[str, Measure], rounds: int) -> dict[str, list[Mapping[str, Any]]]:
    """A B C A B C …: every contender once a round, so that a slow minute of the machine hits all alike."""
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, measure in contenders.items():
            result = measure()
            found[name].append(result)
            shown = "  ".join(f"{key} {significant(value)}" for key, value in result.items() if _plain(value))
            say(f"round {number + 1}/{rounds}  {name:<16} {shown}")
    return found


def median(results: Sequence[Mapping[str, Any]], key: str) -> float:
    """The median of one figure over the rounds."""
    return float(statistics.median(float(result[key]) for result in results))


def significant(value: float) -> float | int:
    """Rounded to the digits that are worth printing."""
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded


def ratio(better: float | None, worse: float | None) -> float | None:
    """`better` over `worse`, if both were measured."""
    return significant(better / worse) if better and worse else None


def rounded(value: Any) -> Any:
    """The same JSON value with every number rounded and every None dropped from objects."""
    if isinstance(value, Mapping):
        return {name: rounded(entry) for name, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return significant(value) if isinstance(value, float) else value


def machine(cores: Cores) -> dict[str, Any]:
    """Where the figures come from."""
    return {"cores": os.cpu_count(), "servers_on": cores.servers, "measured_on": cores.measured, "load": _load()}


def finish(result: Mapping[str, Any]) -> None:
    """Print the last line."""
    print(json.dumps(rounded(result)), flush=True)


def say(text: str) -> None:
    """A line on the way."""
    print(text, flush=True)


@contextmanager
def profiled(title: str, *, kept: Path | None = None) -> Iterator[None]:
    """Run under cProfile and print the functions that take the most time, callees apart."""
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        if kept is not None:
            profile.dump_stats(kept)
        print_profile(profile, title)


def print_profile(source: cProfile.Profile | str, title: str) -> None:
    """The functions of a profile by their own time, and by the time of all they call."""
    for order, heading in (("tottime", "own time"), ("cumulative", "with what they call")):
        text = io.StringIO()
        pstats.Stats(source, stream=text).strip_dirs().sort_stats(order).print_stats(PROFILE_LINES_MAX)
        say(f"--- {title}: functions by {heading}\n{text.getvalue().strip()}")


class Stopwatch:
    """Adds up the time spent in named functions while it is held; one inside another counts for the inner one alone.

    Args:
        watched: a stage's name -> the object and attribute that is called.
    """

    def __init__(self, watched: Mapping[str, tuple[Any, str]]) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(watched, 0.0)
        self._watched = watched
        self._inside: list[str] = []
        self._resumed = 0.0

    def __enter__(self) -> Stopwatch:
        self._originals = {name: getattr(owner, attribute) for name, (owner, attribute) in self._watched.items()}
        for name, (owner, attribute) in self._watched.items():
            setattr(owner, attribute, self._timed(name, self._originals[name]))
        return self

    def __exit__(self, *_: object) -> None:
        for name, (owner, attribute) in self._watched.items():
            setattr(owner, attribute, self._originals[name])

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._inside.append(name)
            try:
                return call(*args, **kwargs)
            finally:
                self._switch()
                self._inside.pop()

        return timed

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._resumed
        self._resumed = now


def shares(seconds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Each stage's seconds and its share of all."""
    total = sum(seconds.values()) or 1.0
    return {name: {"seconds": taken, "share": taken / total} for name, taken in seconds.items()}


def run(main: Callable[[], None]) -> None:
    """Run a benchmark so that SIGTERM and Ctrl-C stop its servers too, and without a traceback."""
    from almanac.errors import AlmanacError

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        main()
    except AlmanacError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("benchmark: stopped", file=sys.stderr)
        sys.exit(130)


def _plain(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _load() -> float:
    return os.getloadavg()[0]
