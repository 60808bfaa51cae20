from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper

from almanac import scoring
from almanac.errors import FeatureError, ModelError, PredictionError
from almanac.manifest import Input
from almanac.partitioning import Grid
from almanac.pipeline import Freshness, Pipeline, horizons, hours
from almanac.registry import ModelVersion, Registry
from almanac.scoring import COLUMNS_KEY, Scorer
from tests.models import description

PIPELINE = Pipeline(
    name="small",
    entity="cell_id",
    partitions=Grid(rows=2, cols=3, tile=2),
    outputs=horizons("t2m", hours=(1, 6)),
    features="small_v1",
    model="small@champion",
    schedule="0 * * * *",
    freshness=Freshness(fresh_for=hours(1), usable_for=hours(6)),
)
COLUMNS = ("t2m", "lag_1h", "north_1")
WEIGHTS = np.array([[1.0, 2.0], [0.5, 0.0], [0.0, -1.0]], dtype=np.float32)
MOMENT = datetime(2026, 3, 1, tzinfo=UTC)
FEATURES = {
    "t2m": np.array([1.0, 2.0, 3.0]),
    "lag_1h": np.array([10.0, 20.0, 30.0], dtype=np.float32),
    "north_1": np.array([5, 6, 7]),
    "cell_id": np.array([3, 17, 4]),
}


def graph(
    weights: np.ndarray = WEIGHTS,
    columns: tuple[str, ...] = COLUMNS,
    outputs: tuple[str, ...] = ("t2m_1h", "t2m_6h"),
    flat: bool = True,
) -> onnx.ModelProto:
    """output = features @ weights[:, output], the smallest model of the right shape."""
    nodes, tensors = [], [numpy_helper.from_array(np.array([-1], dtype=np.int64), "flat")]
    for index, output in enumerate(outputs):
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(weights[:, index : index + 1]), f"w{index}"))
        nodes.append(helper.make_node("MatMul", ["features", f"w{index}"], [f"{output}_2d" if flat else output]))
        if flat:
            nodes.append(helper.make_node("Reshape", [f"{output}_2d", "flat"], [output]))
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, len(weights)])],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, [None] if flat else [None, 1]) for o in outputs],
            tensors,
        ),
        opset_imports=[helper.make_opsetid("", 15)],
        ir_version=8,
    )
    helper.set_model_props(made, {COLUMNS_KEY: msgspec.json.encode(columns).decode()})
    return made


@pytest.fixture
def register(tmp_path: Path) -> Callable[..., ModelVersion]:
    def made(model: onnx.ModelProto | bytes | None = None, **changes: object) -> ModelVersion:
        model = graph() if model is None else model
        data = model if isinstance(model, bytes) else model.SerializeToString()
        described = msgspec.structs.replace(description("small_v1", COLUMNS, PIPELINE.output_names), **changes)
        return Registry(tmp_path).register("small", {"model.onnx": data}, described, now=MOMENT)

    return made


def test_scores_arrays_and_tables_alike(register: Callable[..., ModelVersion]) -> None:
    version = register()
    scorer = Scorer.load(version, PIPELINE)
    assert scorer.inputs == COLUMNS
    assert scorer.model_id == version.id == "small-v1"
    found = scorer.score(FEATURES)
    assert list(found) == ["t2m_1h", "t2m_6h"]
    np.testing.assert_array_equal(found["t2m_1h"], np.array([6, 12, 18], dtype=np.float32))
    np.testing.assert_array_equal(found["t2m_6h"], np.array([-3, -2, -1], dtype=np.float32))
    assert all(values.dtype == np.float32 for values in found.values())
    table = pa.table({name: FEATURES[name] for name in reversed(FEATURES)})
    for name, values in scorer.score(table).items():
        np.testing.assert_array_equal(values, found[name])


def test_no_rows_give_no_predictions(register: Callable[..., ModelVersion]) -> None:
    found = Scorer.load(register(), PIPELINE).score({name: np.empty(0) for name in COLUMNS})
    assert {name: values.shape for name, values in found.items()} == {"t2m_1h": (0,), "t2m_6h": (0,)}


def test_batches_change_nothing(register: Callable[..., ModelVersion], monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer.load(register(), PIPELINE)
    rows = {name: np.random.default_rng(1).normal(size=11) for name in COLUMNS}
    whole = scorer.score(rows)
    monkeypatch.setattr(scoring, "ROWS_BATCH_MAX", 4)
    for name, values in scorer.score(rows).items():
        np.testing.assert_array_equal(values, whole[name])


def test_a_missing_column_is_named(register: Callable[..., ModelVersion]) -> None:
    scorer = Scorer.load(register(), PIPELINE)
    with pytest.raises(FeatureError, match=r"1 of the 3 input columns of model small-v1 are missing \(lag_1h\)"):
        scorer.score({name: values for name, values in FEATURES.items() if name != "lag_1h"})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_hole_in_a_column_is_named_with_its_entities(register: Callable[..., ModelVersion], bad: float) -> None:
    scorer = Scorer.load(register(), PIPELINE)
    holes = FEATURES | {"lag_1h": np.array([bad, 20.0, bad])}
    with pytest.raises(FeatureError, match=r"lag_1h is missing or not finite in 2 of 3 rows \(cell_id 3, 4\)"):
        scorer.score(holes)


def test_a_null_in_a_table_is_a_hole(register: Callable[..., ModelVersion]) -> None:
    scorer = Scorer.load(register(), PIPELINE)
    table = pa.table({**FEATURES, "t2m": pa.array([1, None, 3], pa.int64())})
    with pytest.raises(FeatureError, match=r"t2m is missing or not finite in 1 of 3 rows \(cell_id 17\)"):
        scorer.score(table)


@pytest.mark.parametrize("column", [np.array(["a", "b", "c"]), np.array([1.0, 2.0]), np.array([None, {}, 1])])
def test_a_column_of_another_kind_is_named(register: Callable[..., ModelVersion], column: np.ndarray) -> None:
    with pytest.raises(FeatureError, match="input column lag_1h is"):
        Scorer.load(register(), PIPELINE).score(FEATURES | {"lag_1h": column})


def test_an_infinite_prediction_is_refused(register: Callable[..., ModelVersion]) -> None:
    weights = WEIGHTS.copy()
    weights[0, 1] = 3e38
    scorer = Scorer.load(register(graph(weights)), PIPELINE)
    assert np.isfinite(scorer.score(FEATURES | {"t2m": np.zeros(3)})["t2m_6h"]).all()
    with pytest.raises(PredictionError, match=r"infinity in t2m_6h for 2 of 3 rows \(cell_id 17, 4\)"):
        scorer.score(FEATURES)


def test_a_changed_file_is_refused(register: Callable[..., ModelVersion]) -> None:
    version = register()
    path = version.path / "model.onnx"
    path.write_bytes(graph(WEIGHTS * 2).SerializeToString())
    with pytest.raises(ModelError, match=r"model\.onnx was changed after it was registered"):
        Scorer.load(version, PIPELINE)


def test_what_does_not_match_is_refused_with_both_sides(register: Callable[..., ModelVersion]) -> None:
    version = register()
    other = replace(PIPELINE, outputs=horizons("t2m", hours=(1, 12)))
    with pytest.raises(ModelError, match="other outputs than expected: found t2m_1h, t2m_6h, expected t2m_1h, t2m_12h"):
        Scorer.load(version, other)
    with pytest.raises(ModelError, match="other FeatureService than expected: found small_v1, expected small_v2"):
        Scorer.load(version, replace(PIPELINE, features="small_v2"))


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (graph(columns=("t2m", "north_1", "lag_1h")), {}, "other input columns than expected"),
        (graph(columns=("t2m", "lag_1h")), {}, "other number of input columns than expected: found 3, expected 2"),
        (graph(outputs=("t2m_6h", "t2m_1h")), {}, "other graph outputs than expected"),
        (graph(outputs=("t2m_1h",)), {}, "other graph outputs than expected"),
        (graph(flat=False), {}, "other outputs of one number a row than expected"),
        (graph(), {"inputs": (Input(name="t2m"), Input(name="lag_1h"))}, "other input columns than expected"),
        (
            graph(),
            {"inputs": tuple(Input(name=name, dtype="float64") for name in COLUMNS)},
            "other input types than expected: found float32, float32, float32, expected float64",
        ),
        (b"not a graph", {}, r"model\.onnx is not an ONNX model"),
        (b"", {}, "."),
    ],
)
def test_a_graph_that_does_not_fit_is_refused(
    register: Callable[..., ModelVersion], model: onnx.ModelProto | bytes, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        Scorer.load(register(model, **changes), PIPELINE)


def test_a_graph_without_its_columns_is_refused(register: Callable[..., ModelVersion]) -> None:
    model = graph()
    del model.metadata_props[:]
    with pytest.raises(ModelError, match="does not name its input columns"):
        Scorer.load(register(model), PIPELINE)


def test_external_data_is_refused_before_it_is_looked_for(register: Callable[..., ModelVersion]) -> None:
    model = graph()
    tensor = model.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"
    with pytest.raises(ModelError, match="external data files, which are refused"):
        Scorer.load(register(model), PIPELINE)


def test_operators_of_others_are_refused(register: Callable[..., ModelVersion]) -> None:
    model = graph()
    model.opset_import.append(helper.make_opsetid("com.example.custom", 1))
    with pytest.raises(ModelError, match=r"uses operators of com\.example\.custom"):
        Scorer.load(register(model), PIPELINE)
