"""Feast files of several folders in one registry: none removes another's, and what does not fit is said in one line."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest

from almanac.clock import utc_now
from almanac.errors import FeatureError, Unavailable, UsageError
from almanac.partitioning import Buckets
from almanac.pipeline import Freshness, Output, Pipeline, Stream, Training, days, hours
from almanac.settings import Settings, load_settings
from features.cli import run_feast
from features.store import apply, feature_store
from features.tables import examine, labels_of, tables_of
from jobs.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

FEAST = """
from datetime import timedelta
from pathlib import Path
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Bool, Float32, Int64, String

HERE = Path(__file__).resolve().parent
machine = Entity(name="{name}_machine", join_keys=["machine"], value_type=ValueType.{key})
file = FileSource(name="{name}_file", path={path}, timestamp_field="event_timestamp")
sensors = FeatureView(
    name="{name}_sensors",
    entities=[machine],
    schema=[Field(name="vibration", dtype={kind})],
    source={source},
    ttl=timedelta(hours=3),
)
service = FeatureService(name="{name}_v1", features=[sensors])
"""
PATH = 'str(HERE / "sensors.parquet")'
OWN = ("weather_v1", "shop_v1", "shop_items_v1")
"""The services that `features/repo/` defines."""


def written(folder: Path, name: str = "machines", **changes: str) -> Path:
    """A Feast file and the Parquet file it names."""
    folder.mkdir(exist_ok=True)
    fields = {"name": name, "key": "INT64", "kind": "Float32", "source": "file", "path": PATH}
    (folder / f"{name}.py").write_text(FEAST.format(**{**fields, **changes}))
    rows = pd.DataFrame({"machine": [1, 2], "event_timestamp": utc_now() - timedelta(minutes=5), "vibration": 1.0})
    rows.to_parquet(folder / "sensors.parquet", index=False, coerce_timestamps="us")
    return folder / f"{name}.py"


def at(folder: Path, *places: Path, redis_url: str | None = None) -> Settings:
    """Settings with a registry file of their own."""
    return load_settings(
        state_dir=folder / "state", feature_repo=",".join(map(str, places)), postgres_url=None, redis_url=redis_url
    )


MACHINES = Pipeline(
    name="machines",
    entity="machine",
    partitions=Buckets(count=2, keys="integer"),
    outputs=(Output(name="wear"),),
    features="machines_v1",
    model="machines@champion",
    schedule="0 * * * *",
    freshness=Freshness(fresh_for=hours(1), usable_for=days(2)),
)


def names(settings: Settings) -> set[str]:
    return {service.name for service in feature_store(settings).list_feature_services()}


def test_applying_with_fewer_files_removes_nothing_unless_told(tmp_path: Path, redis_url: str) -> None:
    mine, others = written(tmp_path / "mine", "mine"), written(tmp_path / "others", "others")
    apply(at(tmp_path, mine, others))
    apply(at(tmp_path, others.parent))  # a process that knows less
    assert names(at(tmp_path)) == {*OWN, "mine_v1", "others_v1"}
    with pytest.raises(Unavailable, match="Redis did not answer"):
        apply(at(tmp_path, mine), prune=True)  # the removed view's rows would stay
    apply(at(tmp_path, mine, redis_url=redis_url), prune=True)
    assert names(at(tmp_path)) == {*OWN, "mine_v1"}


def test_a_service_is_found_by_whoever_names_its_file(tmp_path: Path) -> None:
    moment = utc_now()
    with pytest.raises(
        FeatureError, match=r"names the FeatureService 'machines_v1', which no Feast file .* defines"
    ) as no:
        tables_of(MACHINES, at(tmp_path))
    assert "\n" not in str(no.value)
    found = at(tmp_path, written(tmp_path / "mine"))
    assert moment - timedelta(minutes=6) < examine(MACHINES, found, moment) <= moment


@pytest.mark.parametrize(
    ("changes", "pipeline", "said"),
    [
        ({"kind": "String"}, MACHINES, "feature vibration is STRING, models take numbers"),
        ({"key": "STRING"}, MACHINES, "join key machine is STRING in Feast, the declaration has INT64"),
        ({}, replace(MACHINES, entity="device"), "has the join keys machine, pipeline machines predicts for device"),
        (
            {},
            replace(MACHINES, entity="machines_machine"),
            "machines_machine is the Entity's name; declare entity='machine', its join key",
        ),
        ({"path": '"sensors.parquet"'}, MACHINES, "means another file in each process: give the whole path"),
        (
            {"source": 'PushSource(name="push", batch_source=file)'},
            replace(MACHINES, stream=Stream(topic="t", values={"vibration": (0, 9), "heat": None})),
            "events of machines carry heat, vibration, the pushed view machines_sensors has vibration",
        ),
        (
            {"source": 'PushSource(name="push", batch_source=file)', "kind": "Int64"},
            replace(MACHINES, stream=Stream(topic="t", values={"vibration": (0, 9)})),
            r"has vibration \(INT64\): give its columns Float32, Float64 or Bool",
        ),
        (
            {"source": 'PushSource(name="push", batch_source=file)', "kind": "Bool"},
            replace(MACHINES, stream=Stream(topic="t", values={"vibration": (0, 9)})),
            r"has vibration \(BOOL\): give its columns Float32, Float64 or Bool \(where Stream\.values says bool\)",
        ),
    ],
)
def test_a_definition_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, str], pipeline: Pipeline, said: str
) -> None:
    with pytest.raises(FeatureError, match=said) as caught:
        examine(pipeline, at(tmp_path, written(tmp_path / "mine", **changes)), utc_now())
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    first = written(tmp_path / "first")
    again = first.with_name("again.py")
    again.write_text(first.read_text().replace("hours=3", "hours=4"))
    with pytest.raises(FeatureError, match=r"define different objects as FeatureView 'machines_sensors': rename one"):
        apply(at(tmp_path, first, again))
    again.write_text("raise RuntimeError('odd')\n")
    with pytest.raises(FeatureError, match=r"again\.py cannot be executed \(RuntimeError: odd\)"):
        apply(at(tmp_path, again))
    with pytest.raises(FeatureError, match=r"is no folder and no \.py file"):
        apply(at(tmp_path, tmp_path / "absent"))
    with pytest.raises(UsageError, match="takes --prune alone"):
        run_feast(["apply", "--skip-source-validation"])


def test_labels_are_looked_for_before_anything_is_fitted(tmp_path: Path) -> None:
    found = at(tmp_path, written(tmp_path / "mine"))
    with pytest.raises(UsageError, match=r"nothing to train on: declare Training\(labels="):
        train(MACHINES, found, now=utc_now(), progress=lambda _: None)
    absent = replace(MACHINES, training=Training(labels="machines_wear"))
    with pytest.raises(FeatureError, match="trains on the labels 'machines_wear', but no Feast file defines a view"):
        train(absent, found, now=utc_now(), progress=lambda _: None)
    with pytest.raises(FeatureError, match=r"labels view machines_sensors has no column wear \(it has vibration\)"):
        labels_of(MACHINES, found, "machines_sensors")
    few = replace(
        MACHINES, outputs=(Output(name="vibration"),), training=Training(labels="machines_sensors", holdout=days(1))
    )
    with pytest.raises(FeatureError, match="of 2 labels of machines, 0 rows to train on and 2 held out") as caught:
        train(few, found, now=utc_now(), progress=lambda _: None)
    assert "\n" not in str(caught.value)
