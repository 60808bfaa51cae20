"""One ONNX graph out of LightGBM's boosters: levels in, final values out, in the output's own unit.

The graph takes the differences that the trees look at, runs every output's
trees, damps the change that they predict and adds the output's reference. So
whoever scores it, batch, stream or lookup, needs to know none of that.

Inputs are float32 if every feature is declared so, and float64 otherwise: what
LightGBM is asked is what the graph is asked. From the trees on all is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from almanac.manifest import Reference
from almanac.scoring import COLUMNS_KEY, DTYPES_KEY, INPUT_NAME
from jobs.training.ensemble import ensemble
from jobs.training.trees import Tree, trees_of

if TYPE_CHECKING:
    import lightgbm
    import onnx

OPSET = 15
ML_OPSET = 3
IR_VERSION = 8
TREE_INPUT = "columns"

Floats = NDArray[np.float32] | NDArray[np.float64]
Link = Literal["identity", "sigmoid", "exp"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model's columns are made from its inputs, shared by training and graph.

    Args:
        inputs: input columns, in order.
        differences: pairs of inputs (left, right).
        doubles: inputs whose declared type holds numbers that float32 does not.
    """

    inputs: tuple[str, ...]
    differences: tuple[tuple[str, str], ...]
    doubles: frozenset[str] = frozenset()

    @property
    def dtypes(self) -> tuple[Literal["float32", "float64"], ...]:
        """What each input is rounded to before the model looks at it."""
        return tuple("float64" if name in self.doubles else "float32" for name in self.inputs)

    @property
    def dtype(self) -> type[np.floating[Any]]:
        """Of the matrix of all inputs."""
        return np.float64 if self.doubles else np.float32

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the trees' columns: inputs, then differences."""
        return (*self.inputs, *(f"{left}-{right}" for left, right in self.differences))

    def sides(self) -> tuple[list[int], list[int]]:
        """Positions of the left and of the right inputs of all differences."""
        place = {name: index for index, name in enumerate(self.inputs)}
        return [place[left] for left, _ in self.differences], [place[right] for _, right in self.differences]

    def apply(self, inputs: Floats) -> Floats:
        """The trees' columns for input rows; the same subtractions as in the graph."""
        left, right = self.sides()
        return np.hstack([inputs, inputs[:, left] - inputs[:, right]])

    def reference(self, inputs: Floats, reference: Reference) -> NDArray[np.float64]:
        """The value that the change is predicted against, for each row."""
        levels = inputs[:, [self.inputs.index(name) for name in reference.weights]].astype(np.float64)
        weights = np.array(list(reference.weights.values()))
        return np.asarray(levels @ weights, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """One output's trees, what their answer is added to, and what becomes of their sum.

    Args:
        link: between the trees' sum and their answer: none, `sigmoid` (a probability) or `exp`.
        steepness: of the sigmoid.
    """

    output: str
    booster: lightgbm.Booster
    reference: Reference
    link: Link = "identity"
    steepness: float = 1.0

    @cached_property
    def trees(self) -> tuple[Tree, ...]:
        """The booster's trees; raises as `trees_of` does."""
        return trees_of(self.booster, f"the model of {self.output}")

    def predict(self, recipe: Recipe, inputs: Floats) -> NDArray[np.float64]:
        """LightGBM's own answer, in the output's unit: what the graph must agree with."""
        change = np.asarray(self.booster.predict(recipe.apply(inputs), num_threads=2))
        if not self.reference.weights:
            return self.reference.damping * change
        return recipe.reference(inputs, self.reference) + self.reference.damping * change


def to_onnx(recipe: Recipe, fitted: Sequence[Fitted]) -> bytes:
    """The whole model as one self-contained ONNX file: see the module's docstring."""
    from onnx import TensorProto, checker, helper

    builder = _Builder()
    kind = TensorProto.DOUBLE if recipe.doubles else TensorProto.FLOAT
    _add_columns(builder, recipe)
    for one in fitted:
        _add_output(builder, recipe, one)
    graph = helper.make_graph(
        builder.nodes,
        "almanac",
        [helper.make_tensor_value_info(INPUT_NAME, kind, [None, len(recipe.inputs)])],
        [helper.make_tensor_value_info(one.output, TensorProto.FLOAT, [None]) for one in fitted],
        builder.tensors,
    )
    domains = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=domains, producer_name="almanac", ir_version=IR_VERSION)
    named = {COLUMNS_KEY: recipe.inputs, **({DTYPES_KEY: recipe.dtypes} if recipe.doubles else {})}
    helper.set_model_props(model, {key: msgspec.json.encode(words).decode() for key, words in named.items()})
    checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


class _Builder:
    """Nodes and constants of a graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: Any) -> str:
        from onnx import numpy_helper

        array = np.asarray(values)
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def cast(self, source: str, target: str, kind: int) -> str:
        return self.node("Cast", [source], target, to=kind)


def _add_columns(builder: _Builder, recipe: Recipe) -> None:
    """The trees' columns: the inputs, and their differences if the recipe has any; float64."""
    from onnx import TensorProto

    columns = INPUT_NAME
    if recipe.differences:
        left, right = recipe.sides()
        builder.node("Gather", [INPUT_NAME, builder.constant("left", left)], "left_side", axis=1)
        builder.node("Gather", [INPUT_NAME, builder.constant("right", right)], "right_side", axis=1)
        builder.node("Sub", ["left_side", "right_side"], "differences")
        columns = builder.node("Concat", [INPUT_NAME, "differences"], "inputs_and_differences", axis=1)
    builder.cast(columns, TREE_INPUT, TensorProto.DOUBLE)


def _add_output(builder: _Builder, recipe: Recipe, one: Fitted) -> None:
    """reference + damping x trees, under the output's name; without a reference the trees' answer alone."""
    from onnx import TensorProto

    prefix = f"{one.output}/"
    value = _add_trees(builder, one, prefix)
    flat = builder.constant(f"{prefix}flat", [-1])
    if one.reference.damping != 1.0:
        damping = builder.constant(f"{prefix}damping", np.array(one.reference.damping))
        value = builder.node("Mul", [value, damping], f"{prefix}change")
    if one.reference.weights:
        places = builder.constant(f"{prefix}places", [recipe.inputs.index(name) for name in one.reference.weights])
        # The trees' columns begin with the inputs.
        levels = builder.node("Gather", [TREE_INPUT, places], f"{prefix}levels", axis=1)
        weights = builder.constant(f"{prefix}weights", np.array([[one] for one in one.reference.weights.values()]))
        reference = builder.node("MatMul", [levels, weights], f"{prefix}reference")
        value = builder.node("Add", [reference, value], f"{prefix}value")
    single = builder.cast(value, f"{prefix}single", TensorProto.FLOAT)
    builder.node("Reshape", [single, flat], one.output)


def _add_trees(builder: _Builder, one: Fitted, prefix: str) -> str:
    """One output's trees and their link; returns the name of the result, float64 (rows, 1)."""
    from onnx import TensorProto

    builder.nodes.append(ensemble(one.trees, TREE_INPUT, f"{prefix}sum"))  # ONNX says that it answers in float32
    result = builder.cast(f"{prefix}sum", f"{prefix}trees", TensorProto.DOUBLE)
    if one.link == "exp":
        return builder.node("Exp", [result], f"{prefix}linked")
    if one.link == "sigmoid":
        steepness = builder.constant(f"{prefix}steepness", np.array(one.steepness))
        scaled = builder.node("Mul", [result, steepness], f"{prefix}scaled")
        # ONNX Runtime's own Sigmoid says 0 of a chance of 1e-20.
        odds = builder.node("Exp", [builder.node("Neg", [scaled], f"{prefix}negative")], f"{prefix}odds")
        one_more = builder.node("Add", [odds, builder.constant(f"{prefix}one", np.array(1.0))], f"{prefix}one_more")
        return builder.node("Reciprocal", [one_more], f"{prefix}linked")
    return result
