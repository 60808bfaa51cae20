"""Bugs planted on purpose: each takes one safeguard away, and the simulator must notice.

A safeguard whose absence nothing notices is either not needed or not tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from almanac import decisions, generation_states, ladder
from almanac.generation_states import Event, Move, State
from serving_cache import reconciler, rollback, sync
from tests.simulator import cache, reading, record, stored
from tests.simulator.cache import MemoryCache
from tests.simulator.record import MemoryRecord

Plan = list[tuple[Any, str, Any]]
"""What to replace: an object, the name of its part, and what takes the place."""
PAUSED_SECONDS = 4_500.0
"""So long that other generations are published meanwhile, and Redis lets go of what they took the place of."""


def _ready_long_ago(*given: Any, **asked: Any) -> set[str]:
    """Redis is made ready, and then the rollback is paused: by chance alone some seed in ten thousand does that."""
    ready = REAL_BRING(*given, **asked)
    given[3].hub.sleep(PAUSED_SECONDS)
    return ready


def _pointer_first(pipeline: Any, pointer: Any, postgres: Any, store: Any, *, overlays: bool) -> bool:
    moved = store.move_pointer(pointer, store.mark(pipeline.name))
    held = sync.bring_generation(pipeline, pointer.generation.generation, postgres, store, prove=False)
    store.hold(pointer, held)
    return bool(moved)


def _bring_without_manifest(pipeline: Any, generation: int, postgres: Any, store: Any, *, prove: bool) -> set[str]:
    manifest = postgres.manifest(pipeline.name, generation)
    store.put_blocks(pipeline.name, postgres.blocks(pipeline, generation, list(manifest)))
    return {entry.block_hash for entry in manifest.values()}


def _any_marker(self: MemoryCache, pointer: Any, marker: str) -> bool:
    return REAL_MOVE(self, pointer, self.get(f"{pointer.pipeline}:marker"))


def _decide(**changes: Any) -> Callable[..., Any]:
    return lambda **asked: REAL_DECIDE(**{**asked, **changes})


def _oldest(found: Any, every: Mapping[int, Any], current: Any) -> Any:
    first = next((one for _, one in sorted(every.items()) if one.manifest and one is not found), None)
    return REAL_MANIFEST(found, every, None if current is None else first)


def _stale_settle(self: MemoryRecord, attempt: Any, pipeline: Any, now: Any) -> None:
    stale = self.__dict__.setdefault("stale", {}).get(attempt.generation)
    fresh, self.board = self.board, stale or self.board
    try:
        REAL_SETTLE(self, attempt, pipeline, now)
    finally:
        if self.board is stale:
            self.board = fresh


def _remembering_prove(self: MemoryRecord, attempt: Any) -> Any:
    self.__dict__.setdefault("stale", {})[attempt.generation] = self.board
    return REAL_PROVE(self, attempt)


def _trusting_prove(self: MemoryRecord, attempt: Any) -> Any:
    state = self._check(attempt)
    self.damage(attempt.generation)
    return stored.staged_of(self.generations_by_number[attempt.generation]) if state is State.STAGED else ()


def _any_overlay(candidates: Any, way: Any) -> list[Any]:
    dated = [*candidates.overlays, *([candidates.current] if candidates.current else [])]
    return sorted(dated, key=lambda one: one.as_of, reverse=True)


REAL_MOVE, REAL_BRING = MemoryCache.move_pointer, sync.bring_generation
REAL_DECIDE, REAL_DROP, REAL_DROPPABLE = decisions.decide_publish, decisions.to_drop, decisions.droppable
REAL_SETTLE, REAL_PROVE = MemoryRecord._settle, MemoryRecord._prove
REAL_PUBLISH, REAL_RETENTION, REAL_MANIFEST = generation_states.publish, decisions.Retention, stored.manifest_of
NO_TIME = timedelta(0)

_EVERY_STATE = dict(generation_states.TRANSITIONS) | {(state, Event.GO_BACK): State.CURRENT for state in State}

BUGS: Mapping[str, Plan] = {
    "token unchecked": [(record, "token_checked", lambda attempt, row: State(row[1]))],
    "epoch not counted": [(Move, "epoch", property(lambda self: self.before))],
    "compare-and-set missing": [
        (MemoryRecord, "_settle", _stale_settle),
        (MemoryRecord, "_prove", _remembering_prove),
    ],
    "epoch ignored by Redis": [(cache, "epoch_is_greater", lambda candidate, held: True)],
    "pointer before blocks": [(sync, "_follow", _pointer_first)],
    "manifest forgotten": [(sync, "bring_generation", _bring_without_manifest)],
    "marker ignored": [(MemoryCache, "move_pointer", _any_marker)],
    "hash unchecked in Redis": [(sync, "_damaged", lambda *_: set())],
    "hash unchecked in Postgres": [(MemoryRecord, "_prove", _trusting_prove)],
    "no grace for readers": [(cache, "GRACE_SECONDS", 0)],
    "nothing is held": [(MemoryCache, "hold", lambda *_: None)],
    "claim without comparing": [(stored, "may_claim", lambda *_: True)],
    "the past moves the pointer": [(record, "decide_publish", _decide(current_as_of=None))],
    "coverage ignored": [(record, "decide_publish", _decide(coverage_min=0.0001))],
    "carried from the wrong generation": [(stored, "manifest_of", _oldest)],
    "nothing carried": [(stored, "manifest_of", lambda found, every, _: REAL_MANIFEST(found, every, None))],
    "retention drops what the pointer names": [
        (record, "to_drop", lambda kept, **asked: REAL_DROP(kept, **{**asked, "pointed": asked["pointed"][:1]})),
        (record, "Retention", lambda **_: REAL_RETENTION(generations=0, previous=NO_TIME, rolled_back=NO_TIME)),
    ],
    "retention ignores how long": [
        (record, "Retention", lambda **_: REAL_RETENTION(generations=0, previous=NO_TIME, rolled_back=NO_TIME))
    ],
    "carried rows dropped with their generation": [
        (record, "droppable", lambda origins, have, busy: REAL_DROPPABLE({g: {g} for g in origins}, have, busy))
    ],
    "tables of runs under way dropped": [
        (record, "droppable", lambda origins, have, busy: REAL_DROPPABLE(origins, have, []))
    ],
    "rollback to whatever there is": [
        (generation_states, "TURNABLE", frozenset(State)),
        (generation_states, "TRANSITIONS", _EVERY_STATE),
    ],
    "published over a rollback": [
        (record, "publish", lambda board, number: REAL_PUBLISH(replace(board, held=None), number))
    ],
    "rollback skips Redis": [(rollback, "sync_redis", lambda *_: False), (MemoryCache, "mark", lambda *_: "none")],
    "rollback with Redis unready": [(rollback, "bring_generation", lambda *_, **__: set())],
    "rollback trusts what was ready long ago": [
        (rollback, "READY_SECONDS_MAX", float("inf")),
        (rollback, "bring_generation", _ready_long_ago),
    ],
    "overlays of another model answer": [(ladder, "_first_rung", _any_overlay)],
    "Redis: the last overlay wins": [(cache, "is_newer", lambda *_: True)],
    "Postgres: the last overlay wins": [(reading, "is_newer", lambda *_: True)],
    "rows of quarantined partitions stay": [(stored, "take_out", lambda *_: None)],
    "the reconciler compares nothing": [
        (reconciler.Reconciler, "_reconcile", lambda *_: ("in_step", "in step, it says"))
    ],
}

CAUGHT_AT: Mapping[str, int] = {
    "token unchecked": 22,
    "compare-and-set missing": 48,
    "no grace for readers": 7,
    "claim without comparing": 20,
    "rows of quarantined partitions stay": 25,
    "carried rows dropped with their generation": 27,
}
"""Where to begin: the seed that notices, for those that few seeds do."""


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The project with this bug."""
    with ExitStack() as stack:
        for target, part, value in BUGS[name]:
            stack.enter_context(patch.object(target, part, value))
        yield
