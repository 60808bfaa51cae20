"""A small library for tests of ranked lists: members who borrowed books, as a Feast file, Parquet, and a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from almanac.clock import DAY_MICROSECONDS, micros_of
from almanac.ranking_declared import ANY_ITEM

MOMENT = datetime(2026, 3, 1, 12, tzinfo=UTC)
BOOKS = [f"book {number:02d} é" for number in range(30)]
GONE = BOOKS[4]
"""A book that left the library."""
INPUTS = ("visits", "shelf", "own_place", "popular_place", "near_weight")
WEIGHTS = (0.25, -0.125, 0.5, -0.0625, 1.0)

DEFINITIONS = """\
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, Int64, String

member = Entity(name="member_{name}", join_keys=["member"], value_type=ValueType.STRING)
book = Entity(name="book_{name}", join_keys=["book"], value_type=ValueType.STRING)


def file(name):
    return FileSource(name=f"{{name}}_{name}", path=f"{folder}/{{name}}.parquet", timestamp_field="event_timestamp")


history = FeatureView(
    name="history_{name}", entities=[member], source=file("history"),
    schema=[
        Field(name="bought_items", dtype=Array(String)), Field(name="bought_at", dtype=Array(Int64)),
        Field(name="bought_counts", dtype=Array(Int64)), Field(name="visits", dtype=Float32),
    ],
)
stats = FeatureView(
    name="stats_{name}", entities=[book], source=file("stats"),
    schema=[Field(name=column, dtype=Float32) for column in ("shelf", "price", "available")],
)
together = FeatureView(
    name="together_{name}", entities=[book], source=file("together"),
    schema=[Field(name="together_items", dtype=Array(String)), Field(name="together_weights", dtype=Array(Float32))],
)
members_{name} = FeatureService(name="members_{name}", features=[history])
books_{name} = FeatureService(name="books_{name}", features=[stats, together])
"""


def history_of(member: str, moment: datetime, borrowed: Sequence[str]) -> dict[str, Any]:
    """A row of a member who borrowed these books, newest first, a day apart."""
    newest = micros_of(moment)
    return {
        "member": member,
        "event_timestamp": moment,
        "bought_items": list(borrowed),
        "bought_at": [newest - number * DAY_MICROSECONDS for number in range(len(borrowed))],
        "bought_counts": [1 + number % 3 for number in range(len(borrowed))],
        "visits": float(len(borrowed)),
    }


def write_library(folder: Path, name: str, members: int = 40, moment: datetime = MOMENT) -> Path:
    """The Feast file, and rows of so many members and all books as of a moment; returns the Feast file."""
    chance = np.random.default_rng(7)
    histories = [
        history_of(
            f"member {number:03d} é",
            moment,
            [BOOKS[place] for place in chance.permutation(len(BOOKS))[: int(chance.integers(0, 8))]],
        )
        for number in range(members)
    ]
    write_rows(folder / "history.parquet", histories)
    stats = [
        {"shelf": number % 7, "price": 1 + number / 4, "available": float(book != GONE)}
        for number, book in enumerate(BOOKS)
    ]
    write_rows(
        folder / "stats.parquet",
        [{"book": book, "event_timestamp": moment, **row} for book, row in zip(BOOKS, stats, strict=True)],
    )
    write_rows(folder / "together.parquet", together_rows(moment))
    path = folder / f"feast_{name}.py"
    path.write_text(DEFINITIONS.format(name=name, folder=folder))
    return path


def together_rows(moment: datetime, popular: Sequence[str] = BOOKS[:9]) -> list[dict[str, Any]]:
    """Each book goes with the next four; these are popular."""
    rows = []
    for number, book in enumerate([*BOOKS, ANY_ITEM]):
        near = list(popular) if book == ANY_ITEM else [BOOKS[(number + step) % len(BOOKS)] for step in range(1, 5)]
        weights = [1 / (1 + place) for place in range(len(near))]
        rows.append({"book": book, "event_timestamp": moment, "together_items": near, "together_weights": weights})
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a file of a view, in the types that the definitions have."""
    types = {
        "event_timestamp": pa.timestamp("us", tz="UTC"),
        "bought_items": pa.list_(pa.string()),
        "bought_at": pa.list_(pa.int64()),
        "bought_counts": pa.list_(pa.int64()),
        "together_items": pa.list_(pa.string()),
        "together_weights": pa.list_(pa.float32()),
        **dict.fromkeys(("visits", "shelf", "price", "available"), pa.float32()),
    }
    names = list(rows[0])
    columns = {name: pa.array([row[name] for row in rows], types.get(name, pa.string())) for name in names}
    pq.write_table(pa.table(columns), path)
