"""What an ONNX graph may hold: decided from its bytes, before ONNX Runtime sees any of them. Pure.

A graph is somebody else's program. Of ONNX's operators those are taken that trees and the steps before and after them
need. None of them has a graph inside, none makes a size out of numbers that it computes, and none repeats: so what a
graph needs for some rows depends on their number alone, and one trial with as many rows as it will ever get shows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from almanac.errors import ModelError

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""Operator sets a model may use: ONNX's own, never a custom library's."""
OPERATORS = frozenset(
    {
        "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor", "LinearClassifier", "LinearRegressor",
        "SVMClassifier", "SVMRegressor", "ArrayFeatureExtractor", "Binarizer", "FeatureVectorizer", "Imputer",
        "LabelEncoder", "Normalizer", "OneHotEncoder", "Scaler", "Abs", "Add", "And", "ArgMax", "ArgMin", "Cast",
        "Ceil", "Clip", "Concat", "Constant", "Div", "Elu", "Equal", "Erf", "Exp", "Flatten", "Floor", "Gather",
        "GatherElements", "Gemm", "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less",
        "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow",
        "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Round", "Selu", "Sigmoid", "Sign", "Slice",
        "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Transpose", "Unsqueeze", "Where",
        "Xor",
    }
)  # fmt: skip
"""Operators that a model may use."""
TREES = frozenset({"TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"})
NODES_MAX = 100_000
TREE_NODES_MAX = 10_000_000
DIMENSIONS_MAX = 8


def check_graph(model_id: str, data: bytes) -> None:
    """Refuse a graph that would read other files, load other code, never end, or need memory out of proportion.

    ONNX Runtime would look for external tensors relative to the working directory, so they are refused here.

    Raises:
        ModelError: it is no ONNX model, or one that needs more than its own bytes and the operators above.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError, RecursionError):
        raise ModelError(f"model {model_id}: model.onnx is not an ONNX model: train it again") from None
    domains = {entry.domain for entry in model.opset_import} | {node.domain for node in model.graph.node}
    if domains - DOMAINS or len(model.functions):
        raise ModelError(
            f"model {model_id} uses operators of {_named(domains - DOMAINS) or 'its own functions'}, "
            f"expected ONNX's own alone: convert it again"
        )
    if len(model.training_info):
        raise ModelError(f"model {model_id} holds how it was trained: save it for inference alone")
    if len(model.graph.node) > NODES_MAX:
        raise ModelError(f"model {model_id} has more than {NODES_MAX:,} nodes: give a smaller model")
    _check_operators(model_id, model.graph.node)
    _check_tensors(model_id, model.graph)
    for node in model.graph.node:
        if node.op_type in TREES:
            _check_trees(model_id, node)


def _check_operators(model_id: str, nodes: Iterable[Any]) -> None:
    from onnx import AttributeProto

    plain = {
        AttributeProto.FLOAT, AttributeProto.FLOATS, AttributeProto.INT, AttributeProto.INTS, AttributeProto.STRING,
        AttributeProto.STRINGS, AttributeProto.TENSOR,
    }  # fmt: skip
    unknown, inner = set[str | bytes](), set[str | bytes]()
    for node in nodes:
        if node.op_type not in OPERATORS:
            unknown.add(node.op_type)
        inner |= {
            f"{_plain(node.op_type)}.{_plain(attribute.name)}"
            for attribute in node.attribute
            if attribute.type not in plain or attribute.ref_attr_name or attribute.HasField("g") or attribute.graphs
            or attribute.HasField("sparse_tensor") or attribute.sparse_tensors or attribute.tensors
        }  # fmt: skip
    if unknown:
        raise ModelError(
            f"model {model_id} uses {_named(unknown)}, which a model of trees and the steps around it does not need: "
            "leave it out, or compute it as a feature"
        )
    if inner:
        raise ModelError(f"model {model_id} has a graph or sparse tensors within {_named(inner)}: convert it without")


def _check_tensors(model_id: str, graph: Any) -> None:
    import onnx

    if len(graph.sparse_initializer):
        raise ModelError(f"model {model_id} has sparse tensors: convert it without")
    for tensor in _tensors(graph):
        name = _plain(tensor.name) or "without a name"
        if tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data):
            raise ModelError(
                f"model {model_id} keeps tensors in external data files, which are refused: save it as one file"
            )
        if len(tensor.dims) > DIMENSIONS_MAX or any(size < 0 for size in tensor.dims):
            raise ModelError(f"model {model_id}: the sizes of tensor {name} are none: convert it again")
        count, stands = math.prod(tensor.dims), _count(tensor)
        if stands is None or count != stands:
            raise ModelError(
                f"model {model_id}: tensor {name} says that it has {count:,} numbers, and has "
                f"{'none that can be read' if stands is None else f'{stands:,}'}: convert it again"
            )


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _count(tensor: Any) -> int | None:
    """How many numbers or texts really stand in a tensor; None if its kind is not known, or they are cut off."""
    import numpy as np
    from onnx import helper

    try:
        size = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    except (KeyError, TypeError, ValueError):
        return None
    if tensor.HasField("raw_data"):
        whole, rest = divmod(len(tensor.raw_data), size)
        return None if rest else whole
    fields = (
        tensor.float_data, tensor.int32_data, tensor.string_data, tensor.int64_data, tensor.double_data,
        tensor.uint64_data,
    )  # fmt: skip
    return sum(len(one) for one in fields)


def _check_trees(model_id: str, node: Any) -> None:
    """Each branch of a tree leads on: to a node that is there, and never back."""
    import numpy as np

    told = {attribute.name: list(attribute.ints) for attribute in node.attribute}
    if node.op_type == "TreeEnsemble":
        _check_newer_trees(model_id, told)
        return
    modes = next((list(one.strings) for one in node.attribute if one.name == "nodes_modes"), [])
    trees, numbers, true, false = (
        np.array(told.get(f"nodes_{name}", []), np.int64)
        for name in ("treeids", "nodeids", "truenodeids", "falsenodeids")
    )
    sizes = {len(one) for one in (trees, numbers, true, false, modes)}
    if len(sizes) != 1 or len(trees) > TREE_NODES_MAX:
        raise ModelError(f"model {model_id}: its trees' attributes have different lengths: convert it again")
    places = {key: place for place, key in enumerate(zip(trees.tolist(), numbers.tolist(), strict=True))}
    children: list[tuple[int, ...]] = []
    for tree, left, right, mode in zip(trees.tolist(), true.tolist(), false.tolist(), modes, strict=True):
        found = () if mode == b"LEAF" else (places.get((tree, left), -1), places.get((tree, right), -1))
        children.append(found)
    if len(places) != len(trees) or any(-1 in one for one in children) or _leads_back(children):
        raise ModelError(f"model {model_id}: a tree's branches do not lead to its leaves: convert it again")


def _check_newer_trees(model_id: str, told: dict[str, list[int]]) -> None:
    """The same of the operator that ONNX has since its version 5 of machine learning: nodes and leaves by number."""
    true, false = told.get("nodes_trueleafs", []), told.get("nodes_falseleafs", [])
    nodes = len(true)
    sides = [(told.get(f"nodes_{side}nodeids", []), leafs) for side, leafs in (("true", true), ("false", false))]
    leaves = len(told.get("leaf_targetids", []))
    good = all(len(ids) == len(leafs) == nodes for ids, leafs in sides) and nodes <= TREE_NODES_MAX
    children: list[tuple[int, ...]] = [()] * nodes
    for ids, leafs in sides if good else ():
        for place, (child, leaf) in enumerate(zip(ids, leafs, strict=True)):
            good = good and 0 <= child < (leaves if leaf else nodes)
            children[place] += () if leaf else (child,)
    good = good and all(0 <= root < max(nodes, 1) for root in told.get("tree_roots", []))
    if not good or _leads_back(children):
        raise ModelError(f"model {model_id}: a tree's branches do not lead to its leaves: convert it again")


def _leads_back(children: list[tuple[int, ...]]) -> bool:
    """Whether somebody who goes from parents to children may come to where he has been."""
    if all(child > place for place, each in enumerate(children) for child in each):
        return False  # as converters number them
    waiting_for = [0] * len(children)
    for each in children:
        for child in each:
            waiting_for[child] += 1
    ready = [place for place, count in enumerate(waiting_for) if not count]
    seen = 0
    while ready:
        seen += 1
        for child in children[ready.pop()]:
            waiting_for[child] -= 1
            if not waiting_for[child]:
                ready.append(child)
    return seen < len(children)


def _named(names: Iterable[str | bytes]) -> str:
    shown = sorted(_plain(name) for name in names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _plain(text: str | bytes) -> str:
    """A name as a message shows it: protobuf gives what is no UTF-8 as bytes."""
    shown = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text
    return ascii(shown[:60])[1:-1]
