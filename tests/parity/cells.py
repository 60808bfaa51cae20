"""Random cells and hours, each scored three ways: as batch's row, as the event of that hour, and at a lookup."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from almanac.clock import micros_of
from almanac.ladder import Candidate, Compute, Terms
from almanac.partitioning import Grid
from almanac.pipeline import hours
from features.grid import grid_features, views
from features.online import NEWEST_AT, observation_row
from features.online_reading import LAYOUT, PLAN_VERSION, Plan, Reader, View
from features.packed.arrow import encode
from features.packed.codec import Column
from pipelines.weather import weather
from serving_cache.lookup.predicting import Question, predict
from streaming.duplicates import Duplicates
from streaming.handle import Scoring, score, sort
from streaming.models import Model
from streaming.records import Consumed, read_prediction
from tests.parity import trees

GRID = Grid(rows=20, cols=25, tile=10)
PIPELINE = replace(weather, name="parity", partitions=GRID, freshness=replace(weather.freshness, usable_for=hours(24)))
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOURS = 120
VIEWS = views("t2m")
Numbers = dict[tuple[int, datetime], tuple[float, ...]]


@dataclass(frozen=True)
class Cells:
    """Cells at hours of the last half day, with the features that batch computes for them."""

    chosen: list[tuple[int, datetime]]
    seed: int

    @classmethod
    def of(cls, cells: int, seed: int) -> Cells:
        """So many different pairs of cell and hour, at most those there are."""
        every = [(cell, NOW - timedelta(hours=back)) for back in range(20) for cell in range(GRID.cells)]
        dice = np.random.default_rng(seed)
        places = dice.permutation(len(every))[:cells]
        return cls([every[place] for place in places], seed)

    @cached_property
    def table(self) -> pa.Table:
        """A row for each, as batch has it: entity, moment, and the columns of all views."""
        dice = np.random.default_rng(self.seed + 1)
        block = (283 + np.cumsum(dice.normal(0, 0.3, (HOURS, GRID.rows, GRID.cols)), axis=0)).astype(np.float32)
        times = np.array(
            [np.datetime64((NOW - timedelta(hours=HOURS - 1 - h)).replace(tzinfo=None), "us") for h in range(HOURS)]
        )
        columns = grid_features(block, times, GRID, "t2m")
        # The first hours have no features yet: what they look back to is not there.
        last = len(np.asarray(columns["t2m"]).reshape(-1)) // GRID.cells - 1
        rows = [(last - (NOW - at) // timedelta(hours=1)) * GRID.cells + cell for cell, at in self.chosen]
        flat = {name: np.asarray(values).reshape(-1)[rows].astype(np.float32) for name, values in columns.items()}
        return pa.table({PIPELINE.entity: [cell for cell, _ in self.chosen], **flat})

    @cached_property
    def scorer(self) -> Any:
        """The model, over all features that batch computes."""
        names = [name for view in VIEWS.values() for name in view if name in self.table.column_names]
        spread = {}
        for name in names:
            values = self.table[name].to_numpy()
            spread[name] = (float(values.min()) - 0.5, float(values.max()) + 0.5)
        return trees.scorer(spread, PIPELINE.output_names, PIPELINE.entity)

    def batch(self) -> Numbers:
        """All rows at once."""
        found = self.scorer.score(self.table)
        rows = zip(*(found[name].tolist() for name in PIPELINE.output_names), strict=True)
        return dict(zip(self.chosen, rows, strict=True))

    def stream(self) -> Numbers:
        """Each as an event of its hour, with the features of that hour online."""
        found: Numbers = {}
        scoring = Scoring(models=[Model("parity-v1", self.scorer)], observation_row=observation_row)
        for at in sorted({at for _, at in self.chosen}):
            places = [place for place, (_, moment) in enumerate(self.chosen) if moment == at]
            table = self.table.take(pa.array(places))
            records: list[Consumed] = []
            for row in table.select([PIPELINE.entity, "t2m"]).to_pylist():
                body = {"cell_id": row["cell_id"], "observed_at": at.isoformat(), "t2m": row["t2m"]}
                value = json.dumps(body).encode()
                records.append(Consumed(topic="t", partition=0, offset=len(records), key=None, value=value))
            newest = pa.array([at] * table.num_rows, pa.timestamp("s", tz="UTC"))
            online = table.append_column(NEWEST_AT, newest)
            done = score(sort(records, PIPELINE, Duplicates(), NOW), online, PIPELINE, scoring, NOW)
            assert done.dead_letters == ()
            for record in done.predictions:
                overlay = read_prediction(
                    PIPELINE, Consumed(topic="p", partition=0, offset=0, key=None, value=record.value)
                )
                values = tuple(overlay.values[name] for name in PIPELINE.output_names)
                found[int(overlay.entity), overlay.as_of] = values  # type: ignore[assignment]
        return found

    def fresh(self) -> Numbers:
        """Each at a lookup, out of packed rows."""
        found: Numbers = {}
        for at in sorted({at for _, at in self.chosen}):
            places = [place for place, (_, moment) in enumerate(self.chosen) if moment == at]
            table = self.table.take(pa.array(places))
            times: NDArray[np.int64] = np.full(table.num_rows, micros_of(at))
            values = [encode(layout, table, times) for layout in _READER.layouts]
            entities = table[PIPELINE.entity].to_pylist()
            rows = {entity: [each[place] for each in values] for place, entity in enumerate(entities)}
            terms = Terms(outputs=PIPELINE.outputs, freshness=PIPELINE.freshness)
            asked = Question(PIPELINE, dict.fromkeys(entities, Compute(model=None, newer_than=None)), terms, NOW)
            for entity, made in predict(asked, _READER, rows, self.scorer).items():
                assert isinstance(made, Candidate), made
                assert made.as_of is not None
                numbers = tuple(made.values[name] for name in PIPELINE.output_names)
                found[int(entity), made.as_of] = numbers  # type: ignore[assignment]
        return found


_READER = Reader(
    Plan(
        version=PLAN_VERSION, layout=LAYOUT, service="parity", project="parity", join_key=PIPELINE.entity,
        key_type="int64",
        views=tuple(
            View(
                name=name, packed=tuple(Column(column, "FLOAT") for column in columns), features=columns,
                columns=columns, observed=name == "cell_observation",
            )
            for name, columns in VIEWS.items()
        ),
    )
)  # fmt: skip
