"""Random histories of features: a pipeline over two Feast views, rows for their files, what both sides say of them."""

from __future__ import annotations

import math
import runpy
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from hypothesis import strategies as st
from psycopg import sql

from almanac.clock import micros_of
from almanac.partitioning import Buckets
from almanac.pipeline import Freshness, Pipeline, horizons, hours, minutes
from almanac.settings import Settings, load_settings
from features import asof
from features.materialize.run import Materialization
from features.materialize.source import Source
from features.materialize.writer import PackedWriter, keys_of, layout_of
from features.packed.arrow import decode
from features.packed.codec import parse
from features.packed.store import fetch, time_of
from features.store import REGISTRY_SCHEMA, feature_store
from serving_cache.migrate import migrate

VIEWS = ("user_pushed", "user_kept")
USERS = 6
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
TTL = timedelta(hours=6)
TYPES = {"score": "FLOAT", "sum": "DOUBLE", "count": "INT64", "open": "BOOL", "name": "STRING"}
ARROW = {
    "score": pa.float32(),
    "sum": pa.float64(),
    "count": pa.int64(),
    "open": pa.bool_(),
    "name": pa.string(),
}
FEAST = '''"""Two views of users: one that events push, one that files alone keep, a row for each user and moment."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Bool, Float32, Float64, Int64, String

user = Entity(name="history_user", join_keys=["user"], value_type=ValueType.INT64)


def _file(name: str, created: str) -> FileSource:
    return FileSource(
        name=f"{{name}}_file", path="{folder}/" + name + "/*.parquet", file_format=ParquetFormat(),
        timestamp_field="event_timestamp", created_timestamp_column=created,
    )


pushed = FeatureView(
    name="user_pushed", entities=[user], ttl=timedelta(hours={hours}),
    source=PushSource(name="user_events", batch_source=_file("user_pushed", "created_timestamp")),
    schema=[Field(name="score", dtype=Float32), Field(name="sum", dtype=Float64), Field(name="count", dtype=Int64),
            Field(name="open", dtype=Bool), Field(name="name", dtype=String)],
)
kept = FeatureView(
    name="user_kept", entities=[user], ttl=timedelta(0), source=_file("user_kept", ""),
    schema=[Field(name="score", dtype=Float32), Field(name="name", dtype=String)],
)
histories_v1 = FeatureService(name="histories_v1", features=[pushed, kept[["score"]]])
'''


def pipeline(partitions: int = 3) -> Pipeline:
    """A pipeline of users in buckets, whose features the two views are."""
    return Pipeline(
        name="histories",
        entity="user",
        partitions=Buckets(count=partitions, keys="integer"),
        outputs=horizons("score", hours=(6,)),
        features="histories_v1",
        model="histories@champion",
        schedule="0 * * * *",
        freshness=Freshness(fresh_for=minutes(90), usable_for=hours(24)),
    )


def written_definitions(folder: Path, *, hours: int = 6) -> Path:
    """The Feast file, for views below a folder; returns it.

    Args:
        hours: for which a row of the pushed view may be used.
    """
    path = folder / "feast_histories.py"
    path.write_text(FEAST.replace("{folder}", str(folder)).replace("{hours}", str(hours)).replace("{{name}}", "{name}"))
    return path


@dataclass(frozen=True, order=True)
class Row:
    """One row of a view: minutes from `NOON`, and when it was created, in the order of creation."""

    created: int
    user: int
    minute: int
    values: tuple[Any, ...] = field(compare=False)


_CELLS = {
    "score": st.floats(width=32),
    "sum": st.floats(),
    "count": st.integers(-(2**63), 2**63 - 1),
    "open": st.booleans(),
    "name": st.text(max_size=5),
}
_NUMBERS = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0])
MINUTES = st.sampled_from([-900, -420, -361, -360, -359, -60, -1, 0, 1, 30, 359, 360, 361])
"""Event times: many ties, and both sides of every edge of the TTL and of `NOON`."""


@st.composite
def histories(draw: st.DrawFn, view: str) -> list[Row]:
    """Rows of a view in the order of creation; no two were created at once, where that is known, or of one moment."""
    names = columns_of(view)
    cells = st.tuples(
        *(st.none() | (_NUMBERS | _CELLS[name] if name in ("score", "sum") else _CELLS[name]) for name in names)
    )
    alike = None if view == "user_pushed" else (lambda row: row[:2])
    rows = draw(st.lists(st.tuples(st.integers(0, USERS - 1), MINUTES, cells), max_size=14, unique_by=alike))
    return [Row(at, user, minute, values) for at, (user, minute, values) in enumerate(rows)]


def columns_of(view: str) -> list[str]:
    """Names of a view's features."""
    return ["score", "name"] if view == "user_kept" else list(TYPES)


def table_of(view: str, rows: Sequence[Row]) -> pa.Table:
    """Rows as they lie in a file."""
    times = pa.timestamp("us", tz="UTC")
    table = {
        "user": pa.array([row.user for row in rows], pa.int64()),
        "event_timestamp": pa.array([NOON + timedelta(minutes=row.minute) for row in rows], times),
    }
    if view == "user_pushed":
        table["created_timestamp"] = pa.array([NOON + timedelta(days=1, seconds=row.created) for row in rows], times)
    for at, name in enumerate(columns_of(view)):
        table[name] = pa.array([row.values[at] for row in rows], ARROW[name])
    return pa.table(table)


def write_file(folder: Path, view: str, name: str, rows: Sequence[Row]) -> None:
    """Add a file to a view, as whole as a source should write it."""
    write_table(folder / view / f"{name}.parquet", table_of(view, rows))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a file and move it into place."""
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.name}")
    pq.write_table(table, aside)
    aside.rename(path)


@dataclass(frozen=True)
class World:
    """A store of the two views with nothing in it, a database of watermarks, and a materialization that is open.

    Args:
        folder: of the views' folders and the Feast file.
    """

    folder: Path
    settings: Settings
    client: redis.Redis
    run: Materialization

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, redis_url: str, postgres_url: str) -> Iterator[World]:
        """The world below a folder; Redis and the registry are left empty."""
        definitions = str(written_definitions(folder))
        found = load_settings(
            state_dir=folder, redis_url=redis_url, postgres_url=postgres_url, feature_repo=definitions
        )
        migrate(postgres_url, [])
        register(found, definitions)
        with redis.Redis.from_url(redis_url) as client, Materialization(pipeline(), found) as run:
            yield cls(folder, found, client, run)
            client.flushdb()
        with psycopg.connect(postgres_url) as connection:  # who comes next registers definitions of its own folders
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(REGISTRY_SCHEMA)))

    def redefine(self, *, hours: int) -> None:
        """Register the pushed view with another TTL, as somebody else may at any time."""
        register(self.settings, str(written_definitions(self.folder, hours=hours)))

    @property
    def sources(self) -> Mapping[str, Source]:
        """The views as they are materialized."""
        return self.run.sources

    def empty(self) -> None:
        """Nothing online, no watermarks, no files."""
        self.client.flushdb()
        with psycopg.connect(self.settings.need("postgres_url")) as connection:
            connection.execute("DELETE FROM feature_watermarks")
        for view in VIEWS:
            shutil.rmtree(self.folder / view, ignore_errors=True)

    def push(self, view: str, rows: Sequence[Row]) -> None:
        """Events, one after the other, in the order of their creation."""
        writer = PackedWriter(self.client, ties_replace=True)
        for row in sorted(rows):
            (batch,) = table_of(view, [row]).to_batches()
            writer.put(writer.pack(self.sources[view], batch))
        writer.settle()

    def files(self, view: str) -> list[Path]:
        """The files of a view."""
        return sorted((self.folder / view).glob("*.parquet"))


def register(settings: Settings, definitions: str) -> None:
    """Put what a Feast file defines into the registry, and nothing else."""
    with psycopg.connect(settings.need("postgres_url")) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(REGISTRY_SCHEMA)))
    defined = runpy.run_path(definitions)
    feature_store(settings, create=True).apply([defined[name] for name in ("user", "pushed", "kept", "histories_v1")])


Cells = list[tuple[Any, ...]]


def offline(source: Source, files: Sequence[Path], at: datetime) -> Cells:
    """What the files say of each user at a moment, point in time."""
    entities = pa.table(
        {
            "user": pa.array(range(USERS), pa.int64()),
            "event_timestamp": pa.array([at] * USERS, pa.timestamp("us", "UTC")),
        }
    )
    found = asof.join(entities, [source.as_view([str(file) for file in files])])
    return _cells(found, source)


def online(source: Source, client: Any, at: datetime) -> Cells:
    """What the online store says at a moment: nothing of what has expired."""
    values = fetch(client, keys_of(source).of(list(range(USERS))))
    if source.ttl:
        oldest = micros_of(at - source.ttl)
        values = [None if value is None or time_of(value) < oldest else value for value in values]
    layout = layout_of(source)
    return _cells(decode(layout, parse(layout, values), USERS), source)


def _cells(table: pa.Table, source: Source) -> Cells:
    columns = [table[feature.name].to_pylist() for feature in source.features]
    return [tuple(_bits(cell) for cell in row) for row in zip(*columns, strict=True)]


def _bits(cell: Any) -> Any:
    """A cell in a form whose equality tells NaN from null, and zero from minus zero."""
    if not isinstance(cell, float):
        return cell
    return "nan" if math.isnan(cell) else struct.pack("<d", cell)
