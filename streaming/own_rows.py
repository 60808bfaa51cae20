"""Own rows: what a worker wrote of its entities and the features sink has not applied yet. Pure, no I/O.

Where an entity's row is what its events amount to, the next event must be folded
into the newest row. That lies in the online store only once the features sink
has brought it there; until then the worker that wrote it has it here.

A row is kept by where it stands in the features topic, and let go once the sink
has committed beyond that. After an assignment nothing is known of what others
wrote: then the store is read only when the sink is past all that was committed
(`streaming.applied`), and what was kept here is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from almanac.errors import Unavailable
from almanac.partitioning import EntityKey

ROWS_MAX = 20_000
"""Rows kept for a sink that is behind; beyond it the worker waits."""

Row = TypeVar("Row")


@dataclass(frozen=True)
class _Kept(Generic[Row]):
    row: Row
    partition: int
    offset: int


class OwnRows(Generic[Row]):
    """The newest row of each entity that was written and is not applied yet.

    Args:
        rows_max: how many are kept.
    """

    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        self._rows_max = rows_max
        self._kept: dict[EntityKey, _Kept[Row]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, entity: EntityKey) -> Row | None:
        """The newest row that was written of an entity; None if the online store has it."""
        found = self._kept.get(entity)
        return None if found is None else found.row

    def keep(self, entity: EntityKey, row: Row, partition: int, offset: int) -> None:
        """Take note of a row that is committed.

        Args:
            partition, offset: where it stands in the features topic.
        """
        self._kept[entity] = _Kept(row, partition, offset)

    def applied(self, committed: Mapping[int, int]) -> None:
        """Let go of what the sink has applied.

        Args:
            committed: of each partition of the features topic the offset that the sink goes on with.
        """
        self._kept = {
            entity: kept for entity, kept in self._kept.items() if kept.offset >= committed.get(kept.partition, 0)
        }

    def forget(self) -> None:
        """Let go of everything: others may have written since."""
        self._kept = {}

    def need_room(self, entities: int) -> None:
        """Refuse to take more entities than fit.

        Raises:
            Unavailable: the sink is too far behind; says by how much.
        """
        if len(self._kept) + entities > self._rows_max:
            raise Unavailable(
                f"{len(self._kept):,} rows wait for the features sink, at most {self._rows_max:,} are kept: "
                "look at the sink in `almanac status`"
            )
