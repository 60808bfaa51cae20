"""Models from elsewhere, for `almanac models add`: LightGBM's texts by their objective, ONNX files by their types."""

from __future__ import annotations

import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from onnx import TensorProto, helper

from almanac.model_graph import check_graph
from almanac.partitioning import Buckets
from almanac.pipeline import Freshness, Output, Pipeline, hours
from almanac.scoring import Scorer
from jobs.training.adding import Kinds, _booster, _fitted, own_form
from jobs.training.convert import Recipe, to_onnx
from tests.compatibility.tables import Case, Converted, Table, Taken, cell

RIDES = Pipeline(
    name="rides", entity="station", partitions=Buckets(count=2), outputs=(Output(name="rides"),), features="rides_v1",
    model="rides@champion", schedule="0 * * * *", freshness=Freshness(fresh_for=hours(1), usable_for=hours(2)),
)  # fmt: skip
COLUMNS = ("a", "b", "c")
DECLARED = Kinds(doubles=frozenset({"a"}), wholes=frozenset({"a"}))
"""`a` is Int64, `b` and `c` are Float32."""
ROWS = np.random.default_rng(3).normal(size=(60, 3)).astype(np.float32)
TREES = {"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 5}


@cache
def text_of(objective: str, **more: Any) -> str:
    """A small model's text."""
    truth = np.exp(ROWS[:, 0])
    if objective in ("binary", "cross_entropy"):
        truth = (truth > 1).astype(float)
    if objective == "multiclass":
        truth = np.arange(len(ROWS)) % 3
    data = lightgbm.Dataset(ROWS.copy(), truth, feature_name=list(COLUMNS))
    return str(lightgbm.train({"objective": objective, **TREES, **more}, data, 2).model_to_string())


def lightgbm_case(shown: str, text: str) -> Case:
    """A text as a file."""

    def attempt() -> Taken | Converted:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.txt"
            path.write_text(text)
            fitted = _fitted("rides", _booster(path), path)
        scorer = Scorer.open(to_onnx(Recipe(inputs=COLUMNS, differences=()), [fitted]), "m", entity="station")
        scorer.score({name: ROWS[:, at] for at, name in enumerate(COLUMNS)})
        answer = {"identity": "the trees' sum", "sigmoid": "a probability", "exp": "the exponential of their sum"}
        return Converted(f"ONNX that answers {answer[fitted.link]}")

    return Case(f"LightGBM's text, {shown}", attempt)


def without(field: str) -> str:
    """The text of a regression without a line of its head."""
    return re.sub(rf"^{field}=.*\n", "", text_of("regression"), flags=re.M)


def graph(kinds: dict[str, int], answer: int, shape: tuple[Any, ...], operator: str = "Sum") -> bytes:
    """A graph that adds its columns up."""
    nodes = [helper.make_node("Cast", [name], [f"{name}_"], to=TensorProto.DOUBLE) for name in kinds]
    nodes.append(
        helper.make_node(operator, [f"{name}_" for name in kinds][: None if operator == "Sum" else 1], ["all"])
    )
    nodes.append(helper.make_node("ReduceSum", ["all", "axes"], ["sum"], keepdims=len(shape) - 1))
    nodes.append(helper.make_node("Cast", ["sum"], ["variable"], to=answer))
    made = helper.make_graph(
        nodes,
        "sklearn",
        [helper.make_tensor_value_info(name, kind, [None, 1 if len(kinds) > 1 else 3]) for name, kind in kinds.items()],
        [helper.make_tensor_value_info("variable", answer, list(shape))],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    return bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


def onnx_case(shown: str, data: bytes, inputs: tuple[str, ...] = ()) -> Case:
    """A graph as a file; `inputs` as `--inputs` names them."""

    def attempt() -> Taken | Converted:
        check_graph("model.onnx", data)
        scorer = Scorer.open(own_form("model.onnx", data, RIDES, inputs, DECLARED), "m", entity="station")
        scorer.score({name: np.array([2.0, 3.0]) for name in COLUMNS})
        read = ", ".join(f"{name} as {kind}" for name, kind in zip(scorer.inputs, scorer.dtypes, strict=True))
        return Converted(f"reads {read}; answers float32")

    return Case(f"ONNX, {shown}", attempt)


FLOAT, DOUBLE, INT64, ONE = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, (None, 1)
MIXED = {"a": INT64, "b": FLOAT, "c": DOUBLE}
TABLE = Table(
    given="model; features `a` Int64, `b` and `c` Float32",
    cases=(
        *(
            lightgbm_case(f"objective {cell(name)}", text_of(name))
            for name in ("regression", "quantile", "poisson", "binary", "cross_entropy")
        ),
        lightgbm_case("no line `objective`", without("objective")),
        lightgbm_case("objective `regression` with `reg_sqrt`", text_of("regression", reg_sqrt=True)),
        lightgbm_case("objective `multiclass`", text_of("multiclass", num_class=3)),
        lightgbm_case("trees with linear leaves", text_of("regression", linear_tree=True)),
        lightgbm_case("no line `feature_names`", without("feature_names")),
        lightgbm_case("cut off", text_of("regression")[:900]),
        onnx_case("one float32 matrix, columns named by `--inputs`", graph({"X": FLOAT}, FLOAT, ONE), COLUMNS),
        onnx_case("one float32 matrix, columns named by nobody", graph({"X": FLOAT}, FLOAT, ONE)),
        onnx_case("one float64 matrix that answers float64", graph({"X": DOUBLE}, DOUBLE, ONE), COLUMNS),
        onnx_case("one int64 matrix", graph({"X": INT64}, FLOAT, ONE), COLUMNS),
        onnx_case("an input a column, each of its own type", graph(MIXED, FLOAT, (None,))),
        onnx_case("an input a column, one of text", graph({**MIXED, "b": TensorProto.STRING}, FLOAT, ONE)),
        onnx_case("labels as answer", graph(MIXED, INT64, ONE)),
        onnx_case("an operator outside the list", graph(MIXED, FLOAT, ONE, "NonZero")),
        onnx_case("no ONNX", b"PK\x03\x04"),
    ),
)
