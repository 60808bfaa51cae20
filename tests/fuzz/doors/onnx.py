"""The door `almanac models add --onnx`: graphs in which an operator, an attribute, a size or a byte is another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from almanac import model_graph, model_trial
from almanac.errors import ModelError
from almanac.model_graph import OPERATORS, check_graph
from almanac.scoring import INPUT_NAME
from tests.fuzz.reasons import Raises
from tests.fuzz.runner import ACCEPTED, MEBIBYTE, OneByOne, Verdict

RAISES = Raises((model_graph,), ("ModelError",))
NUMBERS = (0, 1, -1, 2, 7, 2**31 - 1, 2**31, -(2**31), 2**62, 10**6, 10**9)
OTHERS = ("If", "Loop", "Scan", "ConstantOfShape", "Tile", "Expand", "Range", "NonZero", "Einsum", "\x1b[2J", "é" * 90)


class Onnx(OneByOne):
    """The door."""

    reasons = RAISES.names | {"refused by its trial"}
    memory_bytes_max = 512 * MEBIBYTE

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Onnx]:
        """Valid graphs; files beside them that no graph may read."""
        (folder / "secret.bin").write_bytes(b"\0" * 4_096)
        onnxruntime.set_default_logger_severity(4)
        self._valid = [_trees(), _pipeline(), _network(), _newer_trees()]
        yield self

    def send(self, random: Random) -> Verdict:
        """Another one each time."""
        model = onnx.ModelProto()
        model.CopyFrom(random.choice(self._valid))
        for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
            if model.graph.node:
                random.choice(MUTATIONS)(model, random)
        data = model.SerializeToString()
        if random.random() < 0.1:
            at = random.randrange(len(data))
            data = data[:at] + random.randbytes(random.choice((1, 1, 1, 9))) + data[at + random.choice((0, 1, 30)) :]
        try:
            check_graph("m.onnx", data)
        except ModelError as error:
            reason = RAISES.of(error)
            return Verdict(reason, reason != "model_graph.check_graph#1")
        return Verdict(_tried(data), True)


def _tried(data: bytes) -> str:
    """Open and ask it in a process of its own, which must end by itself: a crash is what the trial is for."""
    child = os.fork()
    if child == 0:
        code = 1
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        try:
            model_trial.limit()
            model_trial.ask(data)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return ACCEPTED if status == 0 else "refused by its trial"


def _model(nodes: list[Any], constants: list[Any], versions: tuple[int, int] = (17, 3)) -> Any:
    entry = helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, [None, 4])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])
    graph = helper.make_graph(nodes, "g", [entry], [answer], constants)
    opsets = [helper.make_opsetid("", versions[0]), helper.make_opsetid("ai.onnx.ml", versions[1])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _trees() -> Any:
    told = {
        "nodes_treeids": [0] * 5 + [1] * 3, "nodes_nodeids": [0, 1, 2, 3, 4, 0, 1, 2],
        "nodes_featureids": [0, 1, 0, 0, 0, 2, 0, 0], "nodes_values": [0.5, 0.1, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0],
        "nodes_modes": ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF", "BRANCH_LT", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 2, 0, 0, 0, 1, 0, 0], "nodes_falsenodeids": [4, 3, 0, 0, 0, 2, 0, 0],
        "target_treeids": [0, 0, 0, 1, 1], "target_nodeids": [2, 3, 4, 1, 2], "target_ids": [0] * 5,
        "target_weights": [1.0, 2.0, 3.0, 0.1, 0.2], "n_targets": 1,
    }  # fmt: skip
    return _model([helper.make_node("TreeEnsembleRegressor", [INPUT_NAME], ["y"], domain="ai.onnx.ml", **told)], [])


def _newer_trees() -> Any:
    numbers = {
        "nodes_splits": np.array([0.5, 0.1], np.float32), "nodes_modes": np.array([0, 0], np.uint8),
        "leaf_weights": np.array([1.0, 2.0, 3.0], np.float32),
    }  # fmt: skip
    told: dict[str, Any] = {name: numpy_helper.from_array(array, name) for name, array in numbers.items()}
    told |= {
        "nodes_featureids": [0, 1], "nodes_truenodeids": [1, 0], "nodes_falsenodeids": [2, 1],
        "nodes_trueleafs": [0, 1], "nodes_falseleafs": [1, 1], "leaf_targetids": [0] * 3,
        "tree_roots": [0], "n_targets": 1,
    }  # fmt: skip
    node = helper.make_node("TreeEnsemble", [INPUT_NAME], ["y"], domain="ai.onnx.ml", **told)
    return _model([node], [], (21, 5))


def _pipeline() -> Any:
    nodes = [
        helper.make_node("Imputer", [INPUT_NAME], ["a"], domain="ai.onnx.ml", imputed_value_floats=[0.0] * 4),
        helper.make_node("Scaler", ["a"], ["b"], domain="ai.onnx.ml", offset=[0.1] * 4, scale=[2.0] * 4),
        helper.make_node(
            "LinearRegressor", ["b"], ["c"], domain="ai.onnx.ml", coefficients=[1.0] * 4, intercepts=[1.0]
        ),
        helper.make_node("Sigmoid", ["c"], ["y"]),
    ]
    return _model(nodes, [])


def _network() -> Any:
    constants = [
        numpy_helper.from_array(np.ones((4, 8), np.float32), "w"),
        numpy_helper.from_array(np.zeros(8, np.float32), "v"),
        numpy_helper.from_array(np.array([1], np.int64), "axes"),
    ]
    nodes = [
        helper.make_node("Gemm", [INPUT_NAME, "w", "v"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("ReduceSum", ["b", "axes"], ["y"], keepdims=1),
    ]
    return _model(nodes, constants)


def _other_operator(model: Any, random: Random) -> None:
    node = random.choice(model.graph.node)
    node.op_type = random.choice(OTHERS if random.random() < 0.4 else sorted(OPERATORS))


def _other_attribute(model: Any, random: Random) -> None:
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    if not attributes:
        return
    attribute = random.choice(attributes)
    match random.randrange(7):
        case 0 if attribute.ints:
            attribute.ints[random.randrange(len(attribute.ints))] = random.choice(NUMBERS)
        case 1 if attribute.ints:
            del attribute.ints[random.randrange(len(attribute.ints))]
        case 2 if attribute.floats:
            attribute.floats[random.randrange(len(attribute.floats))] = random.choice((0.0, -1e38, float("nan"), 1e-40))
        case 3 if attribute.strings:
            attribute.strings[random.randrange(len(attribute.strings))] = random.choice(
                (b"LEAF", b"BRANCH_LEQ", b"\xff")
            )
        case 4:
            attribute.i = random.choice(NUMBERS)
        case 5:
            attribute.type = random.randrange(15)
        case _:
            attribute.name = random.choice([one.name for one in attributes])


def _other_tensor(model: Any, random: Random) -> None:
    made = TensorProto(name=random.choice("wvab"), data_type=random.randrange(24), dims=[random.choice(NUMBERS)])
    tensors = [*model.graph.initializer, made]
    tensor = random.choice(tensors)
    if tensor is made:
        model.graph.initializer.append(made)
        tensor = model.graph.initializer[-1]
    match random.randrange(5):
        case 0:
            tensor.dims[:] = [random.choice(NUMBERS) for _ in range(random.randrange(10))]
        case 1:
            tensor.raw_data = random.randbytes(random.randrange(40))
        case 2:
            entry = tensor.external_data.add()
            entry.key, entry.value = "location", random.choice(("secret.bin", "../../etc/passwd"))
            tensor.data_location = random.choice((TensorProto.EXTERNAL, TensorProto.DEFAULT))
        case 3:
            tensor.data_type = random.randrange(24)
        case _:
            model.graph.sparse_initializer.add().values.CopyFrom(tensor)


def _other_edges(model: Any, random: Random) -> None:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    node = random.choice(model.graph.node)
    if node.input:
        node.input[random.randrange(len(node.input))] = random.choice(names)
    if random.random() < 0.3:
        copy = model.graph.node.add()
        copy.CopyFrom(node)


def _more(model: Any, random: Random) -> None:
    match random.randrange(7):
        case 0:
            model.training_info.add()
        case 1:
            model.functions.add().name = "f"
        case 2:
            model.opset_import.add().domain = random.choice(("com.example", "", "ai.onnx.ml"))
        case 3:
            random.choice(model.graph.node).domain = random.choice(("com.example", "ai.onnx.ml", ""))
        case 4:
            inner = helper.make_attribute("body", onnx.GraphProto(name="hidden"))
            random.choice(model.graph.node).attribute.append(inner)
        case 5:
            del model.graph.node[random.randrange(len(model.graph.node)) :]
        case _:
            for _ in range(random.choice((10, 10, 10, 100_001))):
                model.graph.node.add().op_type = "Identity"


MUTATIONS: tuple[Callable[[Any, Random], None], ...] = (
    _other_operator, _other_attribute, _other_attribute, _other_tensor, _other_edges, _more,
)  # fmt: skip
DOOR = Onnx()
