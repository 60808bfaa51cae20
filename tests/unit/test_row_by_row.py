"""A model from elsewhere answers each row by itself, or is refused: its batch and its stream would differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto, helper

from almanac.errors import ModelError, PredictionError
from almanac.scoring import Scorer
from jobs.training.adding import own_form
from jobs.training.row_by_row import answers_of
from tests.unit.test_adding import COLUMNS, RIDES, ROWS, graph

TABLE = pa.table({name: ROWS[:20, place] for place, name in enumerate(COLUMNS)})
SUM = helper.make_node("ReduceSum", ["X", "across"], ["sum"], keepdims=1)


def whole(name: str, *numbers: int) -> Any:
    return helper.make_tensor(name, TensorProto.INT64, [len(numbers)], numbers)


def scorer(nodes: list[Any], *constants: Any, shape: tuple[Any, ...] = ("n", 1)) -> Scorer:
    data = graph([("X", ["n", 3])], [("y", list(shape))], nodes, whole("across", 1), *constants)
    return Scorer.open(own_form("m.onnx", data, RIDES, COLUMNS), "m", entity="station")


def over_rows(operator: str) -> list[Any]:
    down = helper.make_node(operator, ["sum"], ["one"], axes=[0], keepdims=1)
    return [SUM, down, helper.make_node("Sub", ["sum", "one"], ["y"])]


@pytest.mark.parametrize(
    "nodes",
    [
        over_rows("ReduceMean"),
        over_rows("ReduceMax"),
        [SUM, helper.make_node("Softmax", ["sum"], ["y"], axis=0)],
        [SUM, helper.make_node("Slice", ["sum", "last", "first", "down", "back"], ["y"])],
    ],
    ids=["mean", "max", "softmax", "reversed"],
)
def test_an_answer_that_depends_on_the_rows_beside_it_is_refused(nodes: list[Any]) -> None:
    constants = [whole("last", -1), whole("first", -(2**40)), whole("down", 0), whole("back", -1)]
    with pytest.raises(ModelError, match=r"m\.onnx answers row 1 with rides .* among some rows"):
        answers_of("m.onnx", scorer(nodes, *constants), TABLE)


@pytest.mark.parametrize("rows", [1, 2, 20])
def test_one_row_is_enough_to_see_it(rows: int) -> None:
    with pytest.raises(ModelError, match="among others"):
        answers_of("m.onnx", scorer(over_rows("ReduceMin")), TABLE.slice(0, rows))


@pytest.mark.parametrize(
    ("nodes", "shape", "numbers"),
    [
        ([helper.make_node("Reshape", ["X", "flat"], ["y"])], ("n", 1), "60 numbers in rides for 20 rows"),
        (
            [
                helper.make_node("Gather", ["X", "zero"], ["row"], axis=0),
                helper.make_node("ReduceSum", ["row", "across"], ["y"], keepdims=0),
            ],
            ("n",),
            "1 numbers in rides for 20 rows",
        ),
    ],
    ids=["one-a-number", "one-for-all"],
)
def test_an_answer_that_is_not_one_a_row_is_refused(nodes: list[Any], shape: tuple[Any, ...], numbers: str) -> None:
    with pytest.raises(PredictionError, match=f"{numbers}: convert it to give one number a row"):
        answers_of("m.onnx", scorer(nodes, whole("flat", -1, 1), whole("zero", 0), shape=shape), TABLE)


def test_a_network_over_each_rows_columns_is_taken() -> None:
    """Its answers are infinite for numbers that nobody has, which is not held against it."""
    nodes = [
        helper.make_node("Softmax", ["X"], ["shares"], axis=1),
        helper.make_node("ReduceSum", ["X", "across"], ["sum"], keepdims=1),
        helper.make_node("Exp", ["sum"], ["large"]),
        helper.make_node("ReduceMax", ["shares"], ["share"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["large", "share"], ["y"]),
    ]
    table = pa.table({name: ROWS[:20, place] + 28 for place, name in enumerate(COLUMNS)})
    found = answers_of("m.onnx", scorer(nodes), table)["rides"]
    columns = np.column_stack([table[name].to_numpy() for name in COLUMNS]).astype(np.float64)
    shares = np.exp(columns) / np.exp(columns).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, np.exp(columns.sum(axis=1)) * shares.max(axis=1), rtol=1e-4)
