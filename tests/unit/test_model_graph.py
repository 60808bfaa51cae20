"""A graph of somebody else's is looked at before ONNX Runtime opens it, and tried in another process first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from almanac.errors import ModelError
from almanac.model_graph import check_graph
from almanac.model_trial import need_harmless
from almanac.scoring import INPUT_NAME


def model(*nodes: Any, constants: tuple[Any, ...] = (), width: int = 3) -> Any:
    entry = helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, [None, width])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])
    graph = helper.make_graph(list(nodes), "g", [entry], [answer], list(constants))
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=versions, ir_version=8)


def summed(source: str = INPUT_NAME) -> list[Any]:
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    return [
        helper.make_node("Constant", [], ["axes"], value=axes),
        helper.make_node("ReduceSum", [source, "axes"], ["y"], keepdims=0),
    ]


def trees(true: list[int], false: list[int], modes: list[str], **more: Any) -> Any:
    count = len(modes)
    leaves = [place for place, mode in enumerate(modes) if mode == "LEAF"]
    told = {
        "nodes_treeids": [0] * count, "nodes_nodeids": list(range(count)), "nodes_featureids": [0] * count,
        "nodes_modes": modes, "nodes_values": [0.5] * count, "nodes_truenodeids": true, "nodes_falsenodeids": false,
        "target_treeids": [0] * len(leaves), "target_nodeids": leaves, "target_ids": [0] * len(leaves),
        "target_weights": [1.0] * len(leaves), "n_targets": 1,
    }  # fmt: skip
    node = helper.make_node("TreeEnsembleRegressor", [INPUT_NAME], ["t"], domain="ai.onnx.ml", **{**told, **more})
    flat = helper.make_tensor("flat", TensorProto.INT64, [1], [-1])
    return model(node, helper.make_node("Reshape", ["t", "flat"], ["y"]), constants=(flat,))


def external_in_a_branch() -> Any:
    """An `If` whose branch holds nothing but an external sparse initializer."""
    values = numpy_helper.from_array(np.zeros(1, np.float32), "hidden")
    values.ClearField("raw_data")
    values.data_location = TensorProto.EXTERNAL
    entry = values.external_data.add()
    entry.key, entry.value = "location", "secret.bin"
    inner = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [1])])
    inner.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64), "i"), [1])
    )
    return model(helper.make_node("If", ["c"], ["x"], then_branch=inner, else_branch=inner), *summed())


def large_constant() -> Any:
    """A few hundred bytes that ask for 4.4 GB."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1_100_000, 1_000])
    return model(helper.make_node("ConstantOfShape", ["shape"], ["big"]), *summed("big"), constants=(shape,))


def endless() -> Any:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])], "body",
        [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("i", "c")],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
    )  # fmt: skip
    return model(helper.make_node("Loop", ["", "c"], [], body=body), *summed())


def of_size(dims: list[int], raw: bytes) -> Any:
    made = model(*summed())
    made.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=raw))
    return made


def of_another_domain() -> Any:
    made = model(*summed())
    made.graph.node[1].domain = "com.example.custom"
    return made


def with_inner_graph_in_a_known_operator() -> Any:
    made = model(*summed())
    made.graph.node[1].attribute.append(helper.make_attribute("body", onnx.GraphProto(name="hidden")))
    return made


def trained() -> Any:
    made = model(*summed())
    made.training_info.add()
    return made


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (external_in_a_branch, "uses If, which a model of trees"),
        (large_constant, "uses ConstantOfShape"),
        (endless, "uses Loop"),
        (lambda: model(helper.make_node("Tile", [INPUT_NAME, "r"], ["x"]), *summed("x")), "uses Tile"),
        (lambda: model(helper.make_node("a\x1b[2J", [INPUT_NAME], ["x"]), *summed("x")), r"uses a\\x1b\[2J"),
        (lambda: of_size([1 << 40], b"\0" * 4), r"says that it has 1,099,511,627,776 numbers, and has 1:"),
        (lambda: of_size([1 << 62, 1 << 62], b"\0" * 4), "numbers, and has 1:"),
        (lambda: of_size([-1], b"\0" * 4), "the sizes of tensor w are none"),
        (lambda: of_size([1], b"\0" * 3), "has none that can be read"),
        (of_another_domain, r"uses operators of com\.example\.custom"),
        (with_inner_graph_in_a_known_operator, r"within ReduceSum\.body"),
        (trained, "holds how it was trained"),
        (lambda: trees([1, 0, 0], [2, 0, 0], ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF"]), "do not lead to its leaves"),
        (lambda: trees([9, 0], [1, 0], ["BRANCH_LEQ", "LEAF"]), "do not lead to its leaves"),
        (lambda: trees([0, 0], [1, 0], ["BRANCH_LEQ", "LEAF"]), "do not lead to its leaves"),
        (lambda: trees([1, 0], [1, 0], ["BRANCH_LEQ", "LEAF"], nodes_treeids=[0]), "have different lengths"),
    ],
)  # fmt: skip
def test_a_hostile_graph_is_refused_before_it_is_opened(
    made: Callable[[], Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\0" * 64)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=said) as caught:
        check_graph("m.onnx", made().SerializeToString())
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_trees_whose_nodes_stand_in_any_order_are_taken() -> None:
    check_graph("m", trees([2, 0, 0], [1, 0, 0], ["BRANCH_LEQ", "LEAF", "LEAF"]).SerializeToString())
    backwards = trees([0, 0, 0, 1], [0, 0, 0, 2], ["LEAF", "LEAF", "LEAF", "BRANCH_LEQ"])
    check_graph("m", backwards.SerializeToString())


def test_a_model_that_needs_too_much_for_many_rows_is_refused_by_its_trial() -> None:
    weights = numpy_helper.from_array(np.ones((3, 300_000), np.float32), "w")
    wide = model(helper.make_node("MatMul", [INPUT_NAME, "w"], ["x"]), *summed("x"), constants=(weights,))
    data = wide.SerializeToString()
    check_graph("m.onnx", data)
    with pytest.raises(ModelError, match=r"m\.onnx was tried, and ONNX Runtime refuses it|ended the process"):
        need_harmless("m.onnx", data)


def test_a_good_model_passes_its_trial() -> None:
    need_harmless("m.onnx", model(*summed()).SerializeToString())
