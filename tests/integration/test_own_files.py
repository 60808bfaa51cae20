"""Files as people bring them: patterns, folders, mapped names, categories, types that differ from day to day.

Each form goes the whole way of a view of one's own: what a run looks at, and the features that it fetches.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from almanac.clock import utc_now
from almanac.errors import FeatureError
from almanac.partitioning import Buckets
from almanac.pipeline import Stream
from features.materialize.plan import Reading
from features.materialize.source import check_files, newest, source_of
from features.offline.reading import historical
from features.store import apply, feature_store
from features.tables import entities, examine, tables_of
from tests.integration.test_definitions import FEAST, MACHINES, at

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

NAMED = replace(MACHINES, partitions=Buckets(count=2))
WHOLE, TEXT = ("INT64", MACHINES), ("STRING", NAMED)
EVERY = 'str(HERE / "*.parquet")'
FOLDER = 'str(HERE / "data")'
MOMENT = utc_now().replace(microsecond=0) - timedelta(minutes=5)


def rows(keys: Any, values: Any = (1.0, 2.0), **names: str) -> pa.Table:
    """Rows of one moment; `names` are other names of columns."""
    table = pa.table(
        {
            "machine": keys,
            "event_timestamp": pa.array([MOMENT] * len(values), pa.timestamp("us", "UTC")),
            "vibration": values,
        }
    )
    return table.rename_columns([names.get(name, name) for name in table.column_names])


def twice(name: str) -> pa.Table:
    table = rows([1, 2])
    return pa.Table.from_arrays([*table.columns, table[name]], names=[*table.column_names, name])


def category() -> pa.Table:
    frame = pd.DataFrame(
        {
            "machine": pd.Categorical(["a", "b"]),
            "event_timestamp": pd.to_datetime([MOMENT] * 2),
            "vibration": [1.0, 2.0],
        }
    )
    return pa.Table.from_pandas(frame, preserve_index=False).cast(
        pa.schema(
            [("machine", pa.dictionary(pa.int8(), pa.string())), rows([1, 2]).schema.field(1), ("vibration", "f8")]
        )
    )


def brought(
    folder: Path, files: dict[str, pa.Table], key: str, path: str = EVERY, kind: str = "Float32", mapping: str = ""
) -> Any:
    """A Feast file and what it names; the settings."""
    text = FEAST.format(name="machines", key=key, kind=kind, source="file", path=path)
    if mapping:
        text = text.replace('timestamp_field="', f'field_mapping={mapping}, timestamp_field="', 1)
    folder.mkdir()
    (folder / "machines.py").write_text(text)
    for name, table in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / name)
    found = at(folder, folder / "machines.py")
    apply(found)
    return found


def fetched(pipeline: Any, settings: Any) -> dict[Any, Any]:
    """What a run would see of each entity: by the point-in-time engine, and as materialization reads it."""
    moment = utc_now()
    assert examine(pipeline, settings, moment) == MOMENT
    keys = [key for some in entities(tables_of(pipeline, settings), pipeline, moment) for key in some]
    (table,) = tables_of(pipeline, settings)
    assert len(table.rows(["vibration"], since=MOMENT, until=moment, rows_max=9)) == len(keys)
    asked = pa.table({"machine": keys, "event_timestamp": pa.array([moment] * len(keys), pa.timestamp("us", "UTC"))})
    joined = historical(pipeline, settings, asked)
    found = dict(zip(keys, joined["vibration"].to_pylist(), strict=True))
    assert found == materialized(settings, moment)
    return found


def materialized(settings: Any, moment: datetime) -> dict[Any, Any]:
    store = feature_store(settings)
    source = source_of(store.get_feature_view("machines_sensors"), store.project, versioned=False)
    files = tuple(file.path for file in source.files(MOMENT, moment))
    check_files(source, files)
    batches = list(newest(source, Reading(files=files, start=MOMENT, end=moment), None))
    return {
        key: value
        for one in batches
        for key, value in zip(one["machine"].to_pylist(), one["vibration"].to_pylist(), strict=True)
    }


A_DAY = {"a.parquet": rows([1, 2]), "b.parquet": rows([3, 4], (3.0, 4.0))}
FOUR = {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}
TAKEN: dict[str, tuple[dict[str, pa.Table], tuple[str, Any], dict[str, str], dict[Any, Any]]] = {
    "whole numbers one day, doubles the next": (
        {"a.parquet": rows([1, 2], pa.array([1, 2])), "b.parquet": rows([3, 4], (3.0, 4.5))}, WHOLE, {},
        {**FOUR, 4: 4.5},
    ),
    "doubles one day, whole numbers the next": (
        {"a.parquet": rows([1, 2]), "b.parquet": rows([3, 4], pa.array([3, 4]))}, WHOLE, {}, FOUR,
    ),
    "whole doubles of a whole number": (
        {"a.parquet": rows([1, 2], pa.array([1, 2])), "b.parquet": rows([3, 4], (3.0, 4.0))}, WHOLE, {"kind": "Int64"},
        FOUR,
    ),
    "keys of two widths": (
        {"a.parquet": rows(pa.array([1, 2], pa.int8())), "b.parquet": rows([3, 4], (3.0, 4.0))}, WHOLE, {}, FOUR,
    ),
    "decimals": ({"a.parquet": rows([1, 2], pa.array([1, 2], pa.decimal128(9, 2)))}, WHOLE, {}, {1: 1.0, 2: 2.0}),
    "pandas' category as key": ({"a.parquet": category()}, TEXT, {}, {"a": 1.0, "b": 2.0}),
    "a category beside text": (
        {"a.parquet": category(), "b.parquet": rows(["c", "d"], (3.0, 4.0))}, TEXT, {},
        {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0},
    ),
    "a dictionary of whole numbers as key": (
        {"a.parquet": rows(pa.array([1, 2]).dictionary_encode())}, WHOLE, {}, {1: 1.0, 2: 2.0},
    ),
    "views of text as key": ({"a.parquet": rows(pa.array(["a", "b"], pa.string_view()))}, TEXT, {}, {"a": 1, "b": 2}),
    "a folder": ({f"data/{name}": table for name, table in A_DAY.items()}, WHOLE, {"path": FOLDER}, FOUR),
    "a folder of folders, whose names are no columns": (
        {f"data/vibration={n}/{name}": table for n, (name, table) in enumerate(A_DAY.items())}, WHOLE,
        {"path": FOLDER}, FOUR,
    ),
    "a mapped feature": (
        {"a.parquet": rows([1, 2], vibration="vib (raw)")}, WHOLE, {"mapping": '{"vib (raw)": "vibration"}'},
        {1: 1.0, 2: 2.0},
    ),
    "a mapped key and time": (
        {"a.parquet": rows([1, 2], machine="No", event_timestamp="ts")}, WHOLE,
        {"mapping": '{"No": "machine", "ts": "event_timestamp"}'}, {1: 1.0, 2: 2.0},
    ),
    "an undeclared column that stands twice": (
        {"a.parquet": twice("vibration").rename_columns(["machine", "event_timestamp", "vibration", "machine "])},
        WHOLE, {}, {1: 1.0, 2: 2.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", TAKEN)
def test_files_are_read_alike_by_all_who_read_them(tmp_path: Path, form: str) -> None:
    files, (key, pipeline), changes, expected = TAKEN[form]
    assert fetched(pipeline, brought(tmp_path / "mine", files, key, **changes)) == expected


UUIDS = [uuid.UUID(int=number).bytes for number in (1, 2)]
EMPTY = rows([1, 2]).slice(0, 0)
REFUSED: dict[str, tuple[pa.Table, tuple[str, Any], str]] = {
    "a feature twice": (twice("vibration"), WHOLE, r"a\.parquet has the column vibration 2 times .*: write it once"),
    "the key twice": (twice("machine"), WHOLE, r"a\.parquet has the column machine 2 times .*: write it once"),
    "the time twice": (twice("event_timestamp"), WHOLE, r"has the column event_timestamp 2 times"),
    "a UUID as key": (rows(pa.array(UUIDS, pa.uuid())), TEXT, r"a\.parquet: column machine is extension<arrow\.uuid>"),
    "bytes as key": (rows(pa.array([b"a", b"b"])), TEXT, r"a\.parquet: column machine is binary, .* write strings"),
    "a double as key": (rows([1.0, 2.0]), WHOLE, r"a\.parquet: column machine is double, .* write whole numbers"),
    "a zero in a key": (rows(["a\0b", "c"]), TEXT, r"machine: key 'a\\x00b' holds a zero, .*: correct the rows"),
    "a sign for no text in a key": (rows(["a\ufffd", "c"]), TEXT, r"machine: key 'a\\ufffd' holds a zero, or a sign"),
    "text as feature": (rows([1, 2], ["x", "y"]), WHOLE, r"a\.parquet: column vibration is string, .*: write numbers"),
    "no rows": (EMPTY, WHOLE, r"no row of machines_sensors is from .*: bring the files of pipeline machines up"),
    "no rows and no types": (
        pa.table({"machine": pa.nulls(0), "event_timestamp": EMPTY["event_timestamp"], "vibration": pa.nulls(0)}),
        WHOLE, r"column machine is null, the declaration has whole numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_read_is_refused_by_file_and_column(tmp_path: Path, form: str) -> None:
    table, (key, pipeline), said = REFUSED[form]
    found = brought(tmp_path / "mine", {"a.parquet": table}, key)
    with pytest.raises(FeatureError, match=said) as caught:
        examine(pipeline, found, utc_now())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (pa.array(UUIDS, pa.uuid()), [str(uuid.UUID(int=1)), str(uuid.UUID(int=2))]),
        (pa.array(["b", "a"]).dictionary_encode(), ["a", "b"]),
        (pa.array([[1], [2]]), r"the key machine is list<.*>, which cannot be a key"),
        (pa.array([{"a": 1}, {"a": 2}]), r"the key machine is struct<.*>, which cannot be a key"),
    ],
    ids=["UUID", "category", "list", "struct"],
)
def test_feast_reads_the_newest_rows_of_keys_of_any_type_or_says_why_not(
    tmp_path: Path, keys: Any, expected: Any
) -> None:
    found = brought(tmp_path / "mine", {"a.parquet": rows(keys)}, "STRING")
    if isinstance(expected, list):
        assert sorted(latest(found)()) == expected
        return
    with pytest.raises(FeatureError, match=expected):
        latest(found)()


def latest(settings: Any) -> Callable[[], list[Any]]:
    """As `feast materialize` asks for them."""
    store = feature_store(settings)
    view = store.get_feature_view("machines_sensors")

    def ask() -> list[Any]:
        job = store._get_provider().offline_store.pull_latest_from_table_or_query(
            config=store.config, data_source=view.batch_source, join_key_columns=["machine"],
            feature_name_columns=["vibration"], timestamp_field="event_timestamp", created_timestamp_column=None,
            start_date=MOMENT, end_date=utc_now(),
        )  # fmt: skip
        return list(job.to_arrow()["machine"].to_pylist())

    return ask


def test_a_pushed_view_whose_files_have_other_names_is_refused(tmp_path: Path) -> None:
    mapping = '{"vib": "vibration"}'
    found = brought(tmp_path / "mine", {"a.parquet": rows([1, 2], vibration="vib")}, "INT64", mapping=mapping)
    text = (tmp_path / "mine" / "machines.py").read_text()
    pushed = text.replace("source=file,", 'source=PushSource(name="push", batch_source=file),')
    (tmp_path / "mine" / "machines.py").write_text(pushed)
    apply(found)

    with pytest.raises(FeatureError, match="pushed view machines_sensors has a field_mapping"):
        tables_of(replace(MACHINES, stream=Stream(topic="t", values={"vibration": (0, 9)})), found)
