"""The store's decisions, without I/O: which overlay wins, what publishing leads to, what may be dropped.

The stores carry these out in SQL and Lua; tests hold them to what stands here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol, TypeVar

Sequence = tuple[datetime, str, int, int]
"""as_of, topic, Kafka partition, Kafka offset: orders the overlays of one entity and model."""

STAGED_KEPT = timedelta(days=2)
"""An unfinished generation left alone for longer was abandoned: nobody has cleared its run to go on with it."""
STAGED_AT_WORK = timedelta(hours=6)
"""One that something happened to since may be at work."""
STAGED_WAITING_MAX = 2
"""So many, the newest, wait longer than that for somebody to go on with them: each may have all of its rows."""
OVERLAYS_UNWRITTEN_MAX = timedelta(days=1)
"""A model that wrote no overlay for longer is not the alias's, unless no event came: then there is nothing to miss."""


class Overlay(Protocol):
    """What put-if-newer needs to know of an overlay."""

    @property
    def entity(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def sequence(self) -> Sequence: ...


OverlayT = TypeVar("OverlayT", bound=Overlay)


def is_newer(candidate: Sequence, stored: Sequence | None) -> bool:
    """Whether a write with this sequence replaces what is stored; an equal one (a replay) does not."""
    return stored is None or _order(candidate) > _order(stored)


def _order(sequence: Sequence) -> tuple[datetime, bytes, int, int]:
    """Topics compare by their bytes: the same in Python, Postgres and Redis, whatever the locale."""
    as_of, topic, partition, offset = sequence
    return as_of, topic.encode(), partition, offset


def newest(overlays: Iterable[OverlayT]) -> list[OverlayT]:
    """The newest overlay of each entity and model, ordered by these (so that writers lock in one order)."""
    best: dict[tuple[str, str], OverlayT] = {}
    for overlay in overlays:
        key = (overlay.entity, overlay.model)
        if key not in best or is_newer(overlay.sequence, best[key].sequence):
            best[key] = overlay
    return [best[key] for key in sorted(best)]


@dataclass(frozen=True)
class PublishDecision:
    """What becomes of a staged generation, and why if it does not become current."""

    state: Literal["current", "archived", "rejected"]
    coverage: float
    reason: str


def decide_publish(
    *,
    staged: int,
    planned: int,
    coverage_min: float,
    as_of: datetime,
    current_as_of: datetime | None,
    backfill: bool = False,
) -> PublishDecision:
    """Decide a generation's outcome when it is published.

    Args:
        staged: partitions this run covers, scored or found unchanged, of `planned` in all.
        coverage_min: least share that it must cover.
        current_as_of: as_of of the generation that readers read now; None if there is none.
        backfill: the run was for the past from the beginning, even if readers have nothing.
    """
    coverage = staged / planned if planned else 0.0
    if coverage < coverage_min:
        return PublishDecision(
            "rejected", coverage, f"covers {staged} of {planned} partitions, below coverage_min {coverage_min:g}"
        )
    if backfill:
        return PublishDecision("archived", coverage, "a backfill: generations of the past are archived")
    if current_as_of is not None and as_of < current_as_of:
        return PublishDecision("archived", coverage, "a backfill: the current generation is from a later as_of")
    return PublishDecision("current", coverage, "")


@dataclass(frozen=True)
class Kept:
    """A generation whose rows are still there, as retention sees it.

    Args:
        active_at: when something was last decided in its ledger, or its run resumed; None if not known.
    """

    generation: int
    state: str
    created_at: datetime
    published_at: datetime | None
    left_at: datetime | None = None
    active_at: datetime | None = None

    def touched_at(self, now: datetime) -> datetime:
        """When its run last did something, as far as `now` allows.

        The ledger has the server's clock. What it says of a time far ahead tells nothing, or a clock that was wrong
        once would keep a generation until that time has come.
        """
        if self.active_at is None or self.active_at - now > STAGED_AT_WORK:
            return self.created_at
        return max(self.created_at, self.active_at)


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What a declaration keeps.

    Args:
        generations: whole ones besides the current one, and as many archived ones.
        previous: how long one is kept at least once it is no longer current; rolled_back: if it was rolled back.
    """

    generations: int
    previous: timedelta
    rolled_back: timedelta


def abandoned(generations: Iterable[Kept], now: datetime) -> list[int]:
    """Unfinished generations that nobody goes on with, by how long and how many."""
    staged = sorted(
        (g for g in generations if g.state == "staged"), key=lambda g: (g.touched_at(now), g.generation), reverse=True
    )
    limits = [STAGED_KEPT if place < STAGED_WAITING_MAX else STAGED_AT_WORK for place in range(len(staged))]
    return sorted(g.generation for g, limit in zip(staged, limits, strict=True) if now - g.touched_at(now) > limit)


def to_drop(generations: Iterable[Kept], *, pointed: Collection[int], retention: Retention, now: datetime) -> list[int]:
    """Generations that retention lets go.

    Kept are those the pointer names, unfinished ones, whatever ceased to be
    current only lately, the latest others that readers have read, and the latest
    archived ones. What was rolled back is kept for its time and no longer.

    Args:
        pointed: the pointer's current and previous generation; the previous one counts among those kept.
    """
    others: dict[str, list[Kept]] = {"archived": [], "rolled_back": [], "previous": []}
    for found in generations:
        if found.published_at is not None and found.generation not in pointed and found.state in others:
            others[found.state].append(found)
    room = {
        "archived": retention.generations,
        "rolled_back": 0,
        "previous": max(0, retention.generations - max(0, len(pointed) - 1)),
    }
    spared = {"archived": timedelta(0), "rolled_back": retention.rolled_back, "previous": retention.previous}
    gone: list[int] = []
    for state, group in others.items():
        group.sort(key=lambda g: (g.published_at or g.created_at, g.generation), reverse=True)
        gone += [g.generation for g in group[room[state] :] if g.left_at is None or now - g.left_at >= spared[state]]
    return sorted(gone)


def forgettable(rejected: Iterable[int], *, newest: int | None, kept: int) -> list[int]:
    """Rejected generations of which nobody needs to know any more what was decided about each partition.

    Args:
        newest: the pipeline's newest generation of all, which the monitor shows.
        kept: so many others are kept for whoever looks why, the newest: as many as archived ones are.
    """
    others = sorted(number for number in rejected if number != newest)
    return others[: max(0, len(others) - kept)]


def unneeded_models(written: Mapping[str, datetime], needed: Collection[str], now: datetime) -> list[str]:
    """Models whose overlays no reader comes to any more.

    Args:
        written: models that have overlays, each with the moment at which the last of them was stored.
        needed: models of the generations that answer, may be gone back to, or are being made.
    """
    return sorted(
        model for model, last in written.items() if model not in needed and now - last > OVERLAYS_UNWRITTEN_MAX
    )


def droppable(
    origins: Mapping[int, Collection[int]], existing: Iterable[int], unfinished: Collection[int]
) -> list[int]:
    """Child tables that no generation refers to any more.

    Args:
        origins: generation to the generations whose rows its manifest names.
        existing: generations that have a child table.
        unfinished: generations that are being filled and have no manifest yet.
    """
    referred = set(unfinished).union(*origins.values()) if origins else set(unfinished)
    return sorted(set(existing) - referred)
