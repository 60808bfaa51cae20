"""One ONNX graph out of LightGBM's boosters: levels in, final values out, in the output's own unit.

The graph takes the differences that the trees look at, runs every output's
trees, damps the change that they predict and adds the output's reference. So
whoever scores it, batch, stream or lookup, needs to know none of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from almanac.manifest import Reference
from almanac.scoring import COLUMNS_KEY, INPUT_NAME

if TYPE_CHECKING:
    import lightgbm
    import onnx

OPSET = 15
ML_OPSET = 3
IR_VERSION = 8
TREE_INPUT = "columns"

Floats = NDArray[np.float32]
Link = Literal["identity", "sigmoid", "exp"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model's columns are made from its inputs, shared by training and graph.

    Args:
        inputs: input columns, in order.
        differences: pairs of inputs (left, right).
    """

    inputs: tuple[str, ...]
    differences: tuple[tuple[str, str], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the trees' columns: inputs, then differences."""
        return (*self.inputs, *(f"{left}-{right}" for left, right in self.differences))

    def sides(self) -> tuple[list[int], list[int]]:
        """Positions of the left and of the right inputs of all differences."""
        place = {name: index for index, name in enumerate(self.inputs)}
        return [place[left] for left, _ in self.differences], [place[right] for _, right in self.differences]

    def apply(self, inputs: Floats) -> Floats:
        """The trees' columns for input rows; the same float32 subtractions as in the graph."""
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

    def predict(self, recipe: Recipe, inputs: Floats) -> NDArray[np.float64]:
        """LightGBM's own answer, in the output's unit: what the graph must agree with."""
        change = np.asarray(self.booster.predict(recipe.apply(inputs), num_threads=2))
        if not self.reference.weights:
            return self.reference.damping * change
        return recipe.reference(inputs, self.reference) + self.reference.damping * change


def exact_thresholds(booster: lightgbm.Booster) -> lightgbm.Booster:
    """The same trees with thresholds that float32 can hold, rounded down.

    LightGBM compares in float64 and ONNX in float32. For a float32 value x,
    `x <= t` is the same as `x <= t rounded down to float32`, so that nothing
    changes here, and every comparison comes out alike in both.
    """
    import lightgbm

    lines = booster.model_to_string().split("\n")
    for index, line in enumerate(lines):
        key, _, values = line.partition("=")
        if key == "threshold" and values:
            lines[index] = f"threshold={' '.join(repr(_rounded_down(float(value))) for value in values.split(' '))}"
    # Sizes in bytes of the trees' texts; without them LightGBM reads the trees one after another.
    return lightgbm.Booster(model_str="\n".join(line for line in lines if not line.startswith("tree_sizes=")))


def _rounded_down(threshold: float) -> float:
    nearest = np.float32(threshold)
    return float(np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > threshold else nearest)


def to_onnx(recipe: Recipe, fitted: Sequence[Fitted]) -> bytes:
    """The whole model as one self-contained ONNX file: see the module's docstring."""
    from onnx import TensorProto, checker, helper

    builder = _Builder()
    _add_columns(builder, recipe)
    for one in fitted:
        _add_output(builder, recipe, one)
    graph = helper.make_graph(
        builder.nodes,
        "almanac",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, [None, len(recipe.inputs)])],
        [helper.make_tensor_value_info(one.output, TensorProto.FLOAT, [None]) for one in fitted],
        builder.tensors,
    )
    domains = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=domains, producer_name="almanac", ir_version=IR_VERSION)
    helper.set_model_props(model, {COLUMNS_KEY: msgspec.json.encode(recipe.inputs).decode()})
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
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        self.tensors.append(numpy_helper.from_array(array, name))
        return name


def _add_columns(builder: _Builder, recipe: Recipe) -> None:
    """The trees' columns: the inputs, and their differences if the recipe has any."""
    if not recipe.differences:
        builder.node("Identity", [INPUT_NAME], TREE_INPUT)
        return
    left, right = recipe.sides()
    builder.node("Gather", [INPUT_NAME, builder.constant("left", left)], "left_side", axis=1)
    builder.node("Gather", [INPUT_NAME, builder.constant("right", right)], "right_side", axis=1)
    builder.node("Sub", ["left_side", "right_side"], "differences")
    builder.node("Concat", [INPUT_NAME, "differences"], TREE_INPUT, axis=1)


def _add_output(builder: _Builder, recipe: Recipe, one: Fitted) -> None:
    """reference + damping x trees, under the output's name; without a reference the trees' answer alone."""
    prefix = f"{one.output}/"
    trees = _add_trees(builder, recipe, one, prefix)
    flat = builder.constant(f"{prefix}flat", [-1])
    if not one.reference.weights:
        builder.node("Reshape", [trees, flat], one.output)
        return
    places = builder.constant(f"{prefix}places", [recipe.inputs.index(name) for name in one.reference.weights])
    levels = builder.node("Gather", [INPUT_NAME, places], f"{prefix}levels", axis=1)
    weights = builder.constant(f"{prefix}weights", np.array([[weight] for weight in one.reference.weights.values()]))
    reference = builder.node("MatMul", [levels, weights], f"{prefix}reference")
    damping = builder.constant(f"{prefix}damping", np.array(one.reference.damping))
    change = builder.node("Mul", [trees, damping], f"{prefix}change")
    value = builder.node("Add", [reference, change], f"{prefix}value")
    builder.node("Reshape", [value, flat], one.output)


def _add_trees(builder: _Builder, recipe: Recipe, one: Fitted, prefix: str) -> str:
    """One output's trees as onnxmltools converts them; returns the name of their result, float32 (rows, 1)."""
    from onnx import compose
    from onnxmltools.convert import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    types = [(TREE_INPUT, FloatTensorType([None, len(recipe.columns)]))]
    sums = one.booster if one.booster.dump_model()["objective"].startswith("regression") else _sums_of(one.booster)
    converted = convert_lightgbm(sums, initial_types=types, target_opset=OPSET, zipmap=False)
    graph = compose.add_prefix(converted, prefix, rename_inputs=False).graph
    builder.nodes += graph.node
    builder.tensors += graph.initializer
    result: str = graph.output[0].name
    if one.link == "exp":
        return builder.node("Exp", [result], f"{prefix}linked")
    if one.link == "sigmoid":
        scaled = builder.node(
            "Mul", [result, builder.constant(f"{prefix}steepness", np.array(one.steepness))], f"{prefix}scaled"
        )
        return builder.node("Sigmoid", [scaled], f"{prefix}linked")
    return result


def _sums_of(booster: lightgbm.Booster) -> lightgbm.Booster:
    """The same trees, answering with their plain sum: the converter makes labels of a classifier's."""
    import lightgbm

    lines = booster.model_to_string().split("\n")
    for index, line in enumerate(lines):
        if line.startswith("objective="):
            lines[index] = "objective=regression"
        elif line.startswith("[objective:"):  # among the parameters at the text's end
            lines[index] = "[objective: regression]"
    return lightgbm.Booster(model_str="\n".join(lines))
