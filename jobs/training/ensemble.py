"""LightGBM's trees as ONNX's tree ensemble: every cut of a split is a node `x <= cut`, and nothing is rounded.

A split with several pieces becomes a chain of such nodes: where one holds, its piece's side follows; where it does not,
the next node asks. Nodes of a chain share the subtrees of the two sides, which ONNX Runtime allows where a true branch
leads to a node that is there already.

Cuts, leaves and sums are float64, as in LightGBM, whatever the inputs are: a float32 is a float64 too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.training.trees import Tree

if TYPE_CHECKING:
    import onnx

LEQ, LEAF = "BRANCH_LEQ", "LEAF"


@dataclass
class _Nodes:
    """The attributes of a tree ensemble, an entry per node; those of leaves are zero."""

    tree: list[int] = field(default_factory=list)
    number: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    mode: list[str] = field(default_factory=list)
    cut: list[float] = field(default_factory=list)
    true: list[int] = field(default_factory=list)
    false: list[int] = field(default_factory=list)
    leaf_tree: list[int] = field(default_factory=list)
    leaf_number: list[int] = field(default_factory=list)
    leaf_value: list[float] = field(default_factory=list)

    def add(
        self, tree: int, number: int, mode: str, column: int = 0, cut: float = 0.0, branches: tuple[int, int] = (0, 0)
    ) -> None:
        """One node; where it holds and where it does not."""
        self.tree.append(tree)
        self.number.append(number)
        self.mode.append(mode)
        self.column.append(column)
        self.cut.append(cut)
        self.true.append(branches[0])
        self.false.append(branches[1])


def ensemble(trees: Sequence[Tree], source: str, target: str) -> onnx.NodeProto:
    """The sum of all trees as one ONNX node.

    Args:
        source: name of the matrix that the trees look at, float64 (rows, columns).
        target: name of the result, float32 (rows, 1).
    """
    from onnx import TensorProto, helper

    nodes = _Nodes()
    for number, tree in enumerate(trees):
        _add(nodes, number, tree)
    values: dict[str, Any] = {
        f"{name}_as_tensor": helper.make_tensor(name, TensorProto.DOUBLE, [len(numbers)], numbers)
        for name, numbers in (("nodes_values", nodes.cut), ("target_weights", nodes.leaf_value))
    }
    return helper.make_node(
        "TreeEnsembleRegressor",
        [source],
        [target],
        name=target,
        domain="ai.onnx.ml",
        n_targets=1,
        aggregate_function="SUM",
        post_transform="NONE",
        nodes_treeids=nodes.tree,
        nodes_nodeids=nodes.number,
        nodes_featureids=nodes.column,
        nodes_modes=nodes.mode,
        nodes_truenodeids=nodes.true,
        nodes_falsenodeids=nodes.false,
        target_treeids=nodes.leaf_tree,
        target_nodeids=nodes.leaf_number,
        target_ids=[0] * len(nodes.leaf_tree),
        **values,
    )


def _add(nodes: _Nodes, number: int, tree: Tree) -> None:
    """One tree's nodes: its root first, and none that nothing leads to, for that would be a root too."""
    chains = [split.pieces for split in tree.splits]

    def place(child: int) -> int:
        while child >= 0 and not chains[child]:
            child = tree.splits[child].right  # nothing goes left
        return child

    def sides(split: int) -> tuple[int, int]:
        return place(tree.splits[split].left), place(tree.splits[split].right)

    root = place(0 if tree.splits else ~0)
    order, starts, count = [], {}, 0
    waiting = [root]
    while waiting:
        child = waiting.pop()
        if child in starts:
            continue
        order.append(child)
        starts[child] = count
        count += 1 if child < 0 else len(chains[child])
        if child >= 0:
            waiting += sides(child)
    for child in order:
        if child < 0:
            nodes.leaf_tree.append(number)
            nodes.leaf_number.append(starts[child])
            nodes.leaf_value.append(tree.leaves[~child])
            nodes.add(number, starts[child], LEAF)
            continue
        left, right = (starts[side] for side in sides(child))
        for index, (cut, goes_left) in enumerate(chains[child], starts[child]):
            last = index + 1 == starts[child] + len(chains[child])
            branches = (left if goes_left else right, right if last else index + 1)
            nodes.add(number, index, LEQ, tree.splits[child].column, cut, branches)
