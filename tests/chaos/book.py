"""What readers were told, what is true, and every breach found between the two."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

BREACHES_MAX = 100

Values = Mapping[str, float]


@dataclass
class Book:
    """Shared by all readers; safe to use from several threads.

    Attributes:
        truth: generation to entity to values, as its rows in Postgres had them when it was current.
        as_of: epoch to the as_of of the generation it made current.
        batch: (generation, entity) to the values that answers and blocks gave.
        stream: (entity, as_of, model) to the values that answers from the stream gave.
        answers: reader to the number of answers it got.
        gaps: reader to the longest time in seconds that it went without an answer.
    """

    truth: dict[int, dict[int, Values]] = field(default_factory=dict)
    as_of: dict[int, str] = field(default_factory=dict)
    batch: dict[tuple[int, int], Values] = field(default_factory=dict)
    stream: dict[tuple[int, str, str], Values] = field(default_factory=dict)
    breaches: list[str] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    gaps: dict[str, float] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._answered: dict[str, float] = {}

    def breach(self, what: str) -> None:
        """Something that must never be seen."""
        with self._lock:
            if len(self.breaches) < BREACHES_MAX:
                self.breaches.append(what)
                print(f"BREACH {what}", flush=True)

    def answered(self, reader: str, epoch: int) -> None:
        """A reader got an answer, which spoke of this epoch."""
        now = time.monotonic()
        with self._lock:
            self.answers[reader] = self.answers.get(reader, 0) + 1
            self.gaps[reader] = max(self.gaps.get(reader, 0.0), now - self._answered.get(reader, now))
            self._answered[reader] = now
            before = self.epochs.get(reader, 0)
            self.epochs[reader] = epoch
        if epoch < before:
            self.breach(f"{reader} went back from epoch {before} to {epoch}")

    def from_batch(self, reader: str, generation: int, entity: int, values: Values) -> None:
        """A prediction of a generation; two readers must not differ about one."""
        self._note(self.batch, (generation, entity), values, f"{reader}: generation {generation} cell {entity}")

    def from_stream(self, reader: str, entity: int, as_of: str, model: str, values: Values) -> None:
        """A prediction of the stream, named by its moment and by the model that made it."""
        what = f"{reader}: overlay of cell {entity} as of {as_of} by {model}"
        self._note(self.stream, (entity, as_of, model), values, what)

    def _note(self, kept: dict[tuple, Values], key: tuple, values: Values, what: str) -> None:  # type: ignore[type-arg]
        with self._lock:
            merged = {**kept.get(key, {}), **values}
            differs = key in kept and not same(kept[key], values)
            kept[key] = merged
        if differs:
            self.breach(f"{what}: {values}, earlier {kept[key]}")

    def compare(self) -> int:
        """Hold every batch answer to its generation's rows; returns how many were compared."""
        compared = 0
        for (generation, entity), values in self.batch.items():
            rows = self.truth.get(generation)
            if rows is None:
                self.breach(f"an answer came from generation {generation}, which never was current")
            elif entity not in rows or not same(rows[entity], values):
                self.breach(f"generation {generation} cell {entity}: said {values}, true {rows.get(entity)}")
            compared += rows is not None
        moments = [self.as_of[epoch] for epoch in sorted(self.as_of)]
        if moments != sorted(moments):
            self.breach(f"the pointer's as_of went back: {moments}")
        return compared


def same(one: Values, other: Values) -> bool:
    """Whether two predictions agree in every output that both have, as the float32 they are."""
    return all(np.float32(one[name]) == np.float32(other[name]) for name in one.keys() & other.keys())
