"""What records of the predictions and features topics must say to be applied, whoever wrote them. Pure, no I/O.

A store keeps the newest of an entity. A record from the future would be that until its time has come, and hide all
that is true until then; so none is applied whose times a worker of ours cannot have written by now.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec

from almanac.clock import DAY_MICROSECONDS, EPOCH, at_micros, format_time, micros_of
from almanac.pipeline import GridObservations, Pipeline
from almanac.ranked import RankedList, Value
from features.interactions.history import HISTORY
from streaming.events import Observed

CLOCKS_APART_MAX = timedelta(minutes=5)
"""How far the clock of a worker may be ahead of a sink's."""
_WHOLE_MAX = 2**63 - 1
_ALIKE = (
    ("bought_items", "bought_at", "bought_counts"),
    ("days", "day_orders", "day_lines", "day_units", "day_spend"),
    ("seen", "seen_at"),
)
"""Columns of a history whose lists have one length."""
_MOMENTS = ("bought_at", "basket_at", "first_at", "seen_at", "seen_floor")


def need_written_by_now(name: str, moment: datetime, now: datetime, ahead: timedelta = timedelta(0)) -> datetime:
    """The moment, if a worker can have written it by now.

    Args:
        ahead: how far ahead of the worker's clock it may be.

    Raises:
        ValueError: it is before 1970, or in the future.
    """
    if moment < EPOCH:
        raise ValueError(f"{name} is {format_time(moment)}, before {format_time(EPOCH)}")
    if moment - now > CLOCKS_APART_MAX + ahead:
        raise ValueError(f"{name} is {format_time(moment)}, in the future: it is {format_time(now)}")
    return moment


def tolerance_of(pipeline: Pipeline) -> timedelta:
    """How far ahead of a worker's clock an event is archived: of histories what the stream declares, else nothing."""
    return (
        pipeline.stream.future_tolerance if pipeline.stream is not None and pipeline.lines is not None else timedelta(0)
    )


def need_history(row: Mapping[str, Any], at: int, created: int, now: datetime) -> None:
    """Refuse a history that no worker can have written by now.

    Args:
        row: its columns; `at` and `created` are microseconds since 1970.

    Raises:
        ValueError: a column is missing, is of another kind or of another length, or a moment lies ahead.
    """
    for name, moment in (("folded.at", at), ("folded.created", created)):
        if not 0 <= moment <= _WHOLE_MAX or moment - micros_of(now) > CLOCKS_APART_MAX // timedelta(microseconds=1):
            raise ValueError(f"{name} is {moment}: it is {micros_of(now)}")
        at_micros(moment)
    if row.keys() != HISTORY.keys():
        raise ValueError("folded.row has other columns than a history")
    for name, kind in HISTORY.items():
        value = row[name]
        if isinstance(value, list) != kind.endswith("s"):
            raise ValueError(f"folded.row.{name} is not {kind}")
        each = value if isinstance(value, list) else [value]
        if kind == "strings":
            right = all(isinstance(one, str) for one in each)
        else:
            right = all(type(one) is int and -_WHOLE_MAX <= one <= _WHOLE_MAX for one in each)
        if not right:
            raise ValueError(f"folded.row.{name} is not {kind}")
        if name in _MOMENTS and any(one > at for one in each):
            raise ValueError(f"folded.row.{name} is later than folded.at")
        if name == "days" and any(one > at // DAY_MICROSECONDS for one in each):
            raise ValueError(f"folded.row.{name} is later than folded.at")
    for names in _ALIKE:
        if len({len(row[name]) for name in names}) > 1:
            raise ValueError(f"the lists {', '.join(names)} of folded.row differ in length")


def body_of(pipeline: Pipeline, value: bytes | None, unreadable: str) -> dict[str, Any]:
    """What a record says.

    Args:
        unreadable: why the client could not read it; empty where it could.

    Raises:
        ValueError: it could not be read, is no JSON, or of another pipeline.
        KeyError: it does not say of which.
    """
    if unreadable:
        raise ValueError(unreadable)
    body = msgspec.json.decode(value or b"", type=dict[str, Any])
    if body["pipeline"] != pipeline.name:
        raise ValueError(f"it is of pipeline {body['pipeline']!r}")
    return body


def value_of(pipeline: Pipeline, found: Any) -> Value:
    """What a record has of one output.

    Raises:
        ValueError, TypeError: neither a number nor, where the declaration has a ranking, a list.
    """
    return msgspec.convert(found, RankedList) if pipeline.ranking is not None else float(found)


def observed_of(pipeline: Pipeline, found: Any) -> Observed:
    """What a record says was observed.

    Raises:
        ValueError, TypeError, KeyError: a number is none, or missing.
    """
    if isinstance(pipeline.source, GridObservations):
        return float(found)
    return {
        name: found[name] if isinstance(found[name], bool) else float(found[name]) for name in pipeline.event_values
    }
