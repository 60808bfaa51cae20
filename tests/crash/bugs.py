"""Bugs planted on purpose, which the workers are forked with: what nobody notices is not tested.

`python -m tests.crash --bug NAME --publishes 300` must end with 1. The simulator has many more, and is quicker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from almanac.decisions import decide_publish
from almanac.failpoints import passing
from almanac.generation_states import State
from serving_cache import postgres_ledger, postgres_publish, postgres_rows, postgres_staging, redis_scripts, sync

_follow = sync._follow


def _no_token() -> None:
    for module in (postgres_rows, postgres_ledger, postgres_staging, postgres_publish):
        vars(module)["token_checked"] = lambda attempt, row: State(row[1])


def _pointer_first() -> None:
    def follow(pipeline: Any, pointer: Any, postgres: Any, cache: Any, *, overlays: bool) -> bool:
        moved: bool = cache.move_pointer(pointer, cache.mark(pipeline.name))
        passing("sync.pointer-moved")
        _follow(pipeline, pointer, postgres, cache, overlays=overlays)
        return moved

    vars(sync)["_follow"] = follow


def _any_epoch() -> None:
    text = redis_scripts.MOVE_POINTER
    vars(redis_scripts)["MOVE_POINTER"] = text.replace(">= tonumber(ARGV[1])", "> 999999999")


def _the_past() -> None:
    vars(postgres_publish)["decide_publish"] = lambda **asked: decide_publish(**{**asked, "current_as_of": None})


BUGS: Mapping[str, Callable[[], None]] = {
    "token unchecked": _no_token,
    "pointer before blocks": _pointer_first,
    "epoch ignored by Redis": _any_epoch,
    "the past moves the pointer": _the_past,
}
