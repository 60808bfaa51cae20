"""Sources of interactions: one interface over files of real ones and a simulated crowd.

Lines have the columns of `SCHEMA`: who, which item, how many at which price, and when.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from almanac.clock import utc_now
from almanac.errors import DeclarationError
from almanac.interactions import Interactions
from almanac.partitioning import Buckets
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from features.sources.dated import Dated

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("entity", "item", "quantity", "price", "at")


class LineSource(Dated, Protocol):
    """Lines of interactions, each with its moment."""

    @property
    def rows(self) -> int | None:
        """Rows that were read, with those set aside; None of a source that reads none."""
        ...

    @property
    def set_aside(self) -> Mapping[str, int]:
        """How many rows were not believed, by reason."""
        ...

    def lines(self, start: datetime, end: datetime) -> pa.Table:
        """The lines from `start` up to `end`, which is excluded, in the order of time: the columns `COLUMNS`."""
        ...

    def kept_aside(self) -> pa.Table | None:
        """The rows that were set aside, as they were read, with a column `reason`; None where there are none."""
        ...


def declared_of(pipeline: Pipeline) -> tuple[Buckets, Interactions]:
    """The buckets and the declared interactions of a pipeline.

    Raises:
        DeclarationError: its source is another.
    """
    if not isinstance(pipeline.partitions, Buckets) or not isinstance(pipeline.source, Interactions):
        raise DeclarationError(
            f"pipeline {pipeline.name} declares no source of interactions: "
            "give it partitions=Buckets(…) and source=Interactions(…)"
        )
    return pipeline.partitions, pipeline.source


def open_lines(pipeline: Pipeline, settings: Settings, *, now: datetime | None = None) -> LineSource:
    """The source that the settings name: the pipeline's file in `source_data`, or else a simulated one.

    Args:
        pipeline: declares columns and what can be true.
        settings: `source_data`, `source_seed`; `features_dir` keeps a replayed file's shift.
        now: where a file's clock is shifted to when it is first used; default: the current time.

    Raises:
        DeclarationError: the pipeline declares no interactions.
        SourceError: the file cannot be used; one line that says what is expected and found.
    """
    partitions, declared = declared_of(pipeline)
    path = settings.data_of(pipeline.name)
    moment = now or utc_now()
    if path is None:
        from features.sources.crowd import Crowd

        return Crowd.settled(pipeline.name, declared, settings, moment)
    from features.sources.baskets import open_baskets

    return open_baskets(pipeline.name, settings, path, (declared, partitions), moment)
