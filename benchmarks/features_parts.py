"""What the parts of `make bench NAME=features` share.

A part is a function in one of the modules that `benchmarks.features` lists. It
measures Feast's own store (peer) and ours on the same data, in this process,
after it found their values equal, and returns one object for each of its names:
usually `beside(bench.turns({"ours": …, "peer": …}))`, where a contender returns
at least `rate`. `bench.size(full, quick)` scales it by `--rows` and `--quick`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from almanac.settings import Settings
from benchmarks.measuring import Cores, Measure, Options, in_turn, median, profiled, ratio, say
from benchmarks.servers import running_servers


@dataclass(kw_only=True)
class Bench:
    """What a part is given.

    Args:
        asked: the command line; with `asked.profile` a part profiles ours (`bench.profiling`) and returns {}.
        cores: parts run on `cores.measured`, servers on the other.
        folder: for files, gone afterwards; a part makes a folder of its own name in it.
    """

    asked: Options
    cores: Cores
    folder: Path
    _stack: ExitStack
    _settings: Settings | None = field(default=None, init=False)

    def size(self, full: int, quick: int) -> int:
        """The asked size, or the part's own."""
        return self.asked.size(full, quick)

    def servers(self) -> Settings:
        """Settings with Postgres and Redis, of a state directory of their own; started at the first call."""
        if self._settings is None:
            say("starting Postgres and Redis")
            self._settings = self._stack.enter_context(running_servers(self.cores))
        return self._settings

    def turns(self, contenders: Mapping[str, Measure]) -> dict[str, list[Mapping[str, Any]]]:
        """Every contender once a round."""
        return in_turn(contenders, self.asked.rounds)

    @contextmanager
    def profiling(self, title: str) -> Iterator[None]:
        """Run under the profiler, and print where the time goes, if `--profile` was given."""
        if not self.asked.profile:
            yield
            return
        with profiled(title):
            yield


@dataclass(frozen=True, kw_only=True)
class Part:
    """One measurement.

    Args:
        names: of the objects in the JSON line that `run` returns.
        run: measures; the objects by their names, or none when it only profiled.
    """

    names: tuple[str, ...]
    run: Callable[[Bench], Mapping[str, Any]]


def beside(found: Mapping[str, list[Mapping[str, Any]]], *, key: str = "rate", **more: Any) -> dict[str, Any]:
    """Medians of `ours`, `peer` and, where there is one, `floor`, with the ratios; rates, so that more is better."""
    medians = {name: median(results, key) for name, results in found.items()}
    return {
        **medians,
        "ratio_peer": ratio(medians.get("ours"), medians.get("peer")),
        "ratio_floor": ratio(medians.get("ours"), medians.get("floor")),
        **more,
    }
