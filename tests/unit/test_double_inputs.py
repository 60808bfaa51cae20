"""A feature that float32 cannot hold: batch, stream and fresh computation ask the model the same."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pyarrow as pa
import pytest

from almanac.clock import micros_of
from almanac.errors import FeatureError
from almanac.ladder import Candidate, Compute, Terms, Unmade
from almanac.manifest import Input, Reference
from almanac.partitioning import Buckets
from almanac.pipeline import Freshness, Output, Pipeline, Stream, hours
from almanac.registry import Registry
from almanac.scoring import Scorer
from features.online_reading import LAYOUT, PLAN_VERSION, Plan, Reader, View
from features.packed.codec import Cells, Column, as_bytes, records
from jobs.training.convert import Fitted, Recipe, to_onnx
from jobs.training.declared import need_told_apart
from serving_cache.lookup.predicting import Question, predict
from streaming.duplicates import Duplicates
from streaming.handle import Scoring, score, sort
from streaming.models import Model
from streaming.records import Consumed, read_prediction
from tests.models import description

NOW = datetime(2026, 11, 21, 13, 30, tzinfo=UTC)
START = 1_700_000_000.0
RIDES = Pipeline(
    name="rides",
    entity="station",
    partitions=Buckets(count=2, keys="integer"),
    outputs=(Output(name="rides"),),
    features="rides_v1",
    model="rides@champion",
    schedule="0 * * * *",
    freshness=Freshness(fresh_for=hours(1), usable_for=hours(2)),
    stream=Stream(topic="rides.seen", values={"share": (0, 1)}),
)
COLUMNS = ("since", "share")
SECONDS = (199.0, 200.0, 201.0, 202.0, 203.0, 300.0)


@pytest.fixture(scope="module")
def booster() -> lightgbm.Booster:
    random = np.random.default_rng(5)
    rows = np.column_stack([START + random.integers(0, 600, 800), random.random(800)])
    truth = np.where(rows[:, 0] > START + 200, 9.36, 0.57) + rows[:, 1]
    quiet = {"objective": "regression", "verbosity": -1, "num_threads": 1, "min_data_in_bin": 1, "max_bin": 1000}
    return lightgbm.train(quiet, lightgbm.Dataset(rows, truth, feature_name=list(COLUMNS), params=quiet), 60)


@pytest.fixture(scope="module")
def scorer(booster: lightgbm.Booster) -> Scorer:
    return Scorer.open(graph(booster), "rides-v1", entity="station")


def graph(booster: lightgbm.Booster) -> bytes:
    fitted = Fitted(output="rides", booster=booster, reference=Reference(weights={}, damping=1.0))
    return to_onnx(Recipe(inputs=COLUMNS, differences=(), doubles=frozenset({"since"})), [fitted])


def expected(booster: lightgbm.Booster, share: float) -> Any:
    """LightGBM's answers; what is declared Float32 is one."""
    return booster.predict(np.array([[START + second, np.float32(share)] for second in SECONDS]))


def streamed(scorer: Any, since: list[float], share: float = 0.3) -> dict[int, Any]:
    """What the stream predicts of events that bring `share`; `since` is among the online features."""
    taken = [
        Consumed(
            topic="rides.seen",
            partition=0,
            offset=at,
            key=None,
            value=json.dumps({"station": at, "observed_at": "2026-11-21T13:00:00Z", "share": share}).encode(),
        )
        for at in range(len(since))
    ]
    online = pa.table({"station": list(range(len(since))), "since": since, "share": [0.9] * len(since)})
    models = [Model("rides-v1", scorer, True)]
    scoring = Scoring(models=models, observation_row=lambda p, e, at, value: dict(value))
    handled = score(sort(taken, RIDES, Duplicates(), NOW), online, RIDES, scoring, NOW)
    overlays = [
        read_prediction(RIDES, Consumed(topic="p", partition=0, offset=0, key=one.key, value=one.value, headers=()))
        for one in handled.predictions
    ]
    return {int(one.entity): one.values["rides"] for one in overlays}


def computed(scorer: Any, since: list[float], share: float = 0.3) -> dict[Any, Any]:
    """What fresh computation answers from what Redis has."""
    columns = (Column("since", "DOUBLE"), Column("share", "FLOAT"))
    seen = View(name="seen", packed=columns, features=COLUMNS, columns=COLUMNS, ttl_seconds=6 * 3600.0, observed=True)
    plan = Plan(
        version=PLAN_VERSION,
        layout=LAYOUT,
        service=RIDES.features,
        project="tests",
        join_key="station",
        key_type="int64",
        views=(seen,),
    )
    reader = Reader(plan)
    (layout,) = reader.layouts
    there = np.ones(len(since), bool)
    cells = {
        "since": Cells(np.array(since), there),
        "share": Cells(np.full(len(since), share, np.float32), there),
    }
    moments = np.full(len(since), micros_of(NOW - timedelta(minutes=5)))
    rows = {at: [value] for at, value in enumerate(as_bytes(records(layout, moments, cells, {})))}
    wish = Compute(model="rides-v1", newer_than=None)
    asked = Question(RIDES, dict.fromkeys(rows, wish), Terms.of(RIDES), NOW)
    return predict(asked, reader, rows, scorer)


def test_batch_stream_and_fresh_computation_tell_seconds_apart(booster: lightgbm.Booster, scorer: Scorer) -> None:
    since = [START + second for second in SECONDS]
    batch = scorer.score(pa.table({"since": since, "share": pa.array([0.3] * len(since), pa.float32())}))["rides"]
    np.testing.assert_allclose(batch, expected(booster, 0.3), rtol=1e-6)
    assert batch[1] < 2
    assert batch[2] > 8
    assert list(streamed(scorer, since).values()) == batch.tolist()
    fresh = computed(scorer, since)
    assert [one.values["rides"] for one in fresh.values()] == batch.tolist()


def test_a_number_beyond_float32_is_taken_where_it_is_declared_and_refused_alone_elsewhere(scorer: Scorer) -> None:
    assert len(streamed(scorer, [START, 1e300, START])) == 3
    assert all(isinstance(one, Candidate) for one in computed(scorer, [START, 1e300]).values())

    class Narrow:
        """A model that reads float32 alone, as one from elsewhere does."""

        model_id, inputs, outputs = "rides-v1", COLUMNS, ("rides",)

        def usable(self, name: str, values: Any) -> Any:
            with np.errstate(over="ignore"):
                return np.isfinite(values.astype(np.float32))

        def score(self, features: Any) -> Any:
            return {"rides": np.asarray(features["share"]).astype(np.float32)}

    assert list(streamed(Narrow(), [START, 1e300, START])) == [0, 2]
    answered = computed(Narrow(), [START, 1e300])
    first, second = answered[0], answered[1]
    assert isinstance(first, Candidate)
    assert isinstance(second, Unmade)
    assert "since" in second.reason


def test_whole_numbers_beyond_doubles_are_the_same_wherever_they_come_from(scorer: Scorer) -> None:
    whole = np.array([2**53 + 1, 2**62 + 3])
    share = np.zeros(2)
    at_once = scorer.score({"since": whole, "share": whole})["rides"]
    np.testing.assert_array_equal(
        at_once, scorer.score({"since": whole.astype(np.float64), "share": whole.astype(np.float64)})["rides"]
    )
    assert np.isfinite(scorer.score({"since": whole, "share": share})["rides"]).all()


def test_the_manifest_says_what_each_column_is_rounded_to(booster: lightgbm.Booster, tmp_path: Path) -> None:
    told = description(RIDES.features, COLUMNS, RIDES.output_names)
    inputs = (Input(name="since", dtype="float64"), Input(name="share"))
    import msgspec

    files = {"model.onnx": graph(booster)}
    registry = Registry(tmp_path)
    version = registry.register("rides", files, msgspec.structs.replace(told, inputs=inputs), now=NOW)
    assert Scorer.load(version, RIDES).dtypes == ("float64", "float32")
    with pytest.raises(FeatureError, match=r"are float32 \(1, 2\), expected float64 with 2 columns"):
        Scorer.load(version, RIDES).score_matrix(np.zeros((1, 2), np.float32))


def test_lists_refuse_what_float32_does_not_tell_apart() -> None:
    names, small = ("spend", "last_order"), np.array([[1e9, 3.0]], np.float32)
    need_told_apart(RIDES, frozenset({"last_order"}), names, small)
    large = np.array([[1.0, 1.7e9]], np.float32)
    with pytest.raises(FeatureError, match=r"last_order reach 16,777,216 and more.*relative to something"):
        need_told_apart(RIDES, frozenset({"last_order"}), names, large)
