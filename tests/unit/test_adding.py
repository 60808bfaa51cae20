"""Models from elsewhere: what is made of them answers as they do, and what cannot be used is refused in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from almanac.errors import ModelError, UsageError
from almanac.model_graph import check_graph
from almanac.partitioning import Buckets
from almanac.pipeline import Freshness, Output, Pipeline, hours
from almanac.scoring import Scorer
from jobs.training.adding import Kinds, _booster, _fitted, own_form
from jobs.training.convert import Recipe, to_onnx

RIDES = Pipeline(
    name="rides",
    entity="station",
    partitions=Buckets(count=2),
    outputs=(Output(name="rides"),),
    features="rides_v1",
    model="rides@champion",
    schedule="0 * * * *",
    freshness=Freshness(fresh_for=hours(1), usable_for=hours(2)),
)
COLUMNS = ("a", "b", "c")
ROWS = np.random.default_rng(3).normal(size=(400, 3)).astype(np.float32)


def trained(objective: str, folder: Path, **more: Any) -> Path:
    truth = ROWS[:, 0] + 0.3 * ROWS[:, 1]
    truth = (truth > 0).astype(float) if objective in ("binary", "cross_entropy") else np.exp(truth)
    data = lightgbm.Dataset(ROWS, truth, feature_name=list(COLUMNS))
    booster = lightgbm.train({"objective": objective, "verbosity": -1, "num_threads": 1, **more}, data, 8)
    booster.save_model(str(path := folder / "model.txt"))
    return path


@pytest.mark.parametrize(
    "objective", ["binary", "cross_entropy", "poisson", "gamma", "tweedie", "regression", "quantile", "fair", "mape"]
)
def test_lightgbms_text_answers_alike_as_onnx(objective: str, tmp_path: Path) -> None:
    path = trained(objective, tmp_path, **({"sigmoid": 1.7} if objective == "binary" else {}))
    booster = _booster(path)
    recipe = Recipe(inputs=COLUMNS, differences=())
    scorer = Scorer.open(to_onnx(recipe, [_fitted("rides", booster, path)]), "m", entity="station")
    found = scorer.score({name: ROWS[:, index] for index, name in enumerate(COLUMNS)})
    np.testing.assert_allclose(
        found["rides"], lightgbm.Booster(model_file=str(path)).predict(ROWS), rtol=1e-4, atol=1e-5
    )


def test_text_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    many = lightgbm.Dataset(ROWS, np.arange(400) % 3)
    booster = lightgbm.train({"objective": "multiclass", "num_class": 3, "verbosity": -1}, many, 2)
    booster.save_model(str(tmp_path / "many.txt"))
    with pytest.raises(ModelError, match="one model per output"):
        _booster(tmp_path / "many.txt")
    for name, content in (("empty.txt", b""), ("other.txt", b"tree\nnot a model\n"), ("binary.txt", b"\x80\x04\xff")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=r"is not a LightGBM model's text|does not answer") as caught:
            _booster(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="name a model's file"):
        _booster(tmp_path / "absent.txt")


def test_versions_proved_on_real_rows_alone_are_named() -> None:
    from datetime import UTC, datetime

    from almanac.manifest import Manifest, Parity
    from almanac.registry import ModelVersion
    from jobs.training.models_cli import _proof, _proved_on_real_rows_alone
    from tests.models import description

    told = description("rides_v1", COLUMNS, ("rides",))
    said = {name: getattr(told, name) for name in told.__struct_fields__}
    files = {"model.onnx": "", "model-rides.txt": ""}

    def version(parity: Parity, files: dict[str, str]) -> ModelVersion:
        at = datetime(2026, 3, 1, tzinfo=UTC)
        more = {**said, "parity": parity, "files": files, "created_at": at}
        return ModelVersion("rides", 1, Path(), Manifest(format=1, name="rides", version=1, **more))

    old = Parity(rows=9, difference_max=1e-7, tolerance=1e-3)
    new = Parity(rows=9, difference_max=1e-7, tolerance=1e-3, boundary_rows=80, splits=7, splits_reached=6)
    assert _proved_on_real_rows_alone(version(old, files))
    assert not _proved_on_real_rows_alone(version(new, files))
    assert not _proved_on_real_rows_alone(version(old, {"model.onnx": ""}))  # its own answers are all there is
    assert _proof(new).endswith("on 9 golden rows and on 80 that reach 6 of 7 splits from both sides")


def graph(
    inputs: list[tuple[str, list[Any]]], outputs: list[tuple[str, list[Any]]], nodes: list[Any], *constants: Any
) -> bytes:
    made = helper.make_graph(
        nodes,
        "elsewhere",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        list(constants),
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def matrix() -> bytes:
    """The sum of three columns, under names that are not ours, one number a row in a column."""
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    return graph(
        [("X", ["n", 3])], [("y", ["n", 1])], [helper.make_node("ReduceSum", ["X", "axes"], ["y"], keepdims=1)], axes
    )


def columns() -> bytes:
    """2 b - a, of an input per column, in an order of its own."""
    nodes = [helper.make_node("Add", ["b", "b"], ["twice"]), helper.make_node("Sub", ["twice", "a"], ["rides"])]
    return graph([("b", ["n", 1]), ("a", ["n", 1])], [("rides", ["n", 1])], nodes)


def scored(data: bytes) -> Any:
    scorer = Scorer.open(data, "m", entity="station")
    return scorer.score({name: ROWS[:, index] for index, name in enumerate(COLUMNS)})["rides"]


def test_a_matrix_of_named_columns_is_taken_over() -> None:
    made = own_form("m.onnx", matrix(), RIDES, COLUMNS)
    np.testing.assert_allclose(scored(made), ROWS.sum(axis=1), rtol=1e-5, atol=1e-5)
    again = own_form("m.onnx", made, RIDES, ())  # our own form is taken too, with the names inside
    np.testing.assert_allclose(scored(again), ROWS.sum(axis=1), rtol=1e-5, atol=1e-5)


def test_an_input_per_column_is_taken_over() -> None:
    np.testing.assert_allclose(
        scored(own_form("m.onnx", columns(), RIDES, ())), 2 * ROWS[:, 1] - ROWS[:, 0], rtol=1e-5, atol=1e-5
    )


def test_float64_inputs_stay_so_for_features_that_are_declared_so() -> None:
    model = onnx.load_model_from_string(matrix())
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.node[0].output[0] = "sum"
    model.graph.node.append(helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT))
    data = bytes(model.SerializeToString())
    wide = Scorer.open(own_form("m.onnx", data, RIDES, COLUMNS, Kinds(doubles=frozenset({"a"}))), "m", entity="station")
    assert wide.dtypes == ("float64", "float32", "float32")
    assert wide.score({"a": np.array([1.7e9 + 1]), "b": np.array([-1.7e9]), "c": np.array([0.0])})["rides"] == 1
    assert Scorer.open(own_form("m.onnx", data, RIDES, COLUMNS), "m", entity="station").dtype is np.float32
    np.testing.assert_allclose(scored(own_form("m.onnx", data, RIDES, COLUMNS)), ROWS.sum(axis=1), rtol=1e-5, atol=1e-5)


def typed(kinds: dict[str, int], answer: int = TensorProto.FLOAT) -> bytes:
    """The sum of the columns as scikit-learn's converters make it: inputs of their own types, an answer of another."""
    nodes = [helper.make_node("Cast", [name], [f"{name}_"], to=TensorProto.DOUBLE) for name in kinds]
    nodes.append(helper.make_node("Sum", [f"{name}_" for name in kinds], ["all"]))
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes += [
        helper.make_node("ReduceSum", ["all", "axes"], ["sum"], keepdims=1),
        helper.make_node("Cast", ["sum"], ["variable"], to=answer),
    ]
    width = 1 if len(kinds) > 1 else 3
    made = helper.make_graph(
        nodes,
        "sklearn",
        [helper.make_tensor_value_info(name, kind, [None, width]) for name, kind in kinds.items()],
        [helper.make_tensor_value_info("variable", answer, [None, 1])],
        [axes],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


WHOLES = Kinds(doubles=frozenset({"a", "c"}), wholes=frozenset({"a", "c"}))
COUNTS = {"a": np.array([7.0, 2**24 + 1]), "b": np.array([0.25, -1.5], np.float32), "c": np.array([-3.0, 0.0])}


@pytest.mark.parametrize("answer", [TensorProto.FLOAT, TensorProto.DOUBLE])
@pytest.mark.parametrize("whole", [TensorProto.INT64, TensorProto.INT32])
def test_whole_numbers_and_doubles_are_taken_as_scikit_learns_converters_make_them(whole: int, answer: int) -> None:
    data = typed({"a": whole, "b": TensorProto.DOUBLE, "c": whole}, answer)
    scorer = Scorer.open(own_form("m.onnx", data, RIDES, (), WHOLES), "m", entity="station")
    assert scorer.dtypes == ("float64", "float32", "float64")
    assert scorer.score(COUNTS)["rides"].tolist() == [4.25, np.float32(2**24 - 0.5)]
    matrix_of_doubles = typed({"X": TensorProto.DOUBLE}, answer)
    scorer = Scorer.open(own_form("m.onnx", matrix_of_doubles, RIDES, COLUMNS, WHOLES), "m", entity="station")
    assert scorer.score(COUNTS)["rides"].tolist() == [4.25, np.float32(2**24 - 0.5)]


def test_whole_numbers_are_asked_of_no_feature_that_may_have_fractions() -> None:
    with pytest.raises(ModelError, match=r"takes b as whole numbers, and the feature is not declared so: .* Int64"):
        own_form("m.onnx", typed({"X": TensorProto.INT64}), RIDES, COLUMNS, WHOLES)
    every = Kinds(doubles=frozenset(COLUMNS), wholes=frozenset(COLUMNS))
    made = own_form("m.onnx", typed({"X": TensorProto.INT64}), RIDES, COLUMNS, every)
    scorer = Scorer.open(made, "m", entity="station")
    assert scorer.score({name: np.array([2**53 - 1.0]) for name in COLUMNS})["rides"].tolist() == [3 * 2.0**53]
    with pytest.raises(ModelError, match=r"input X is no matrix .* of float32, float64, int32 or int64"):
        own_form("m.onnx", typed({"X": TensorProto.UINT8}), RIDES, COLUMNS, every)


def test_a_text_without_an_objective_answers_its_raw_score(tmp_path: Path) -> None:
    """As of a model whose objective was a function of its trainer's; of a classifier that is no probability."""
    path = trained("binary", tmp_path)
    text, recipe = path.read_text(), Recipe(inputs=COLUMNS, differences=())
    raw = lightgbm.Booster(model_str=text).predict(ROWS, raw_score=True)
    for line in ("", "objective=custom\n", "objective=none\n"):
        path.write_text(re.sub(r"^objective=.*\n", line, text, flags=re.M))
        booster = _booster(path)
        scorer = Scorer.open(to_onnx(recipe, [_fitted("rides", booster, path)]), "m", entity="station")
        found = scorer.score({name: ROWS[:, index] for index, name in enumerate(COLUMNS)})["rides"]
        np.testing.assert_allclose(found, raw, rtol=1e-4, atol=1e-5)
        assert found.min() < 0
    for name, said in (("", "its objective is ''"), ("cross_entropy_lambda", "these can be used: bin")):
        path.write_text(re.sub(r"^objective=.*\n", f"objective={name}\n", text, flags=re.M))
        with pytest.raises(ModelError, match=said):
            _fitted("rides", _booster(path), path)


def two_numbers() -> bytes:
    return graph([("X", ["n", 2])], [("y", ["n", 2])], [helper.make_node("Identity", ["X"], ["y"])])


@pytest.mark.parametrize(
    ("data", "inputs", "said"),
    [
        (matrix, (), "give them, as --inputs a,b,c"),
        (matrix, ("a", "b"), "3 input columns, 2 are named"),
        (two_numbers, ("a", "b"), "output y is not one float32 or float64 number a row"),
    ],
)
def test_another_form_is_refused(data: Callable[[], bytes], inputs: tuple[str, ...], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        own_form("m.onnx", data(), RIDES, inputs)
    assert "\n" not in str(caught.value)


def test_outputs_must_be_the_declared_ones() -> None:
    two = replace(RIDES, outputs=(Output(name="rides"), Output(name="returns")))
    with pytest.raises(ModelError, match="answers y, pipeline rides declares rides, returns"):
        own_form("m.onnx", matrix(), two, COLUMNS)


def taken(data: bytes) -> bytes:
    check_graph("m.onnx", data)
    return own_form("m.onnx", data, RIDES, COLUMNS)


def test_what_is_no_onnx_is_refused() -> None:
    for data in (b"", b"PK\x03\x04", b"\x80\x04pickle"):
        with pytest.raises(ModelError) as caught:
            taken(data)
        assert "\n" not in str(caught.value)
