"""LightGBM's text, read before LightGBM reads it, whose parser ends the process over one that is cut off or damaged."""

from __future__ import annotations

import re
from collections.abc import Mapping

from almanac.errors import ModelError

END = "\nend of trees"
_TREE = re.compile(r"\nTree=(\d+)\n")
_PARAMETERS, _END_OF_PARAMETERS = "\nparameters:", "\nend of parameters"
_ARRAYS = ("split_feature", "threshold", "decision_type", "left_child", "right_child")
"""What a tree says of each inner node."""


def sections_of(text: str) -> tuple[str, list[Mapping[str, str]]]:
    """The head of a model's text, and the fields of each tree; what follows the trees may hold names like theirs."""
    head, *parts = _TREE.split(text.split(END + "\n", 1)[0])
    return head, [_fields(body) for body in parts[1::2]]


def read_text(data: bytes, what: str) -> str:
    r"""The text of a model that LightGBM may be given; line ends `\r\n` become `\n`.

    Args:
        what: names the file in errors.

    Raises:
        ModelError: it is no such text, is cut off, was changed, or holds two models.
    """
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise unusable(what, "it is no UTF-8") from None
    if not text.startswith("tree\n"):
        raise unusable(what, "it does not begin with the line `tree`")
    trees, ended, rest = text.partition(END + "\n")
    if not ended:
        raise unusable(what, "it ends before the line `end of trees`: it was cut off")
    if "\ntree\nversion=" in text:
        raise unusable(what, "it holds two models, and only the first would answer")
    if _PARAMETERS in rest and _END_OF_PARAMETERS not in rest:
        raise unusable(what, "it ends among its parameters: it was cut off")
    head = trees.split("\nTree=", 1)[0]
    fields = _fields(head)
    _need_sizes(what, trees + "\n", fields)
    columns = _wholes(what, fields, "max_feature_idx")
    if len(columns) != 1 or len(fields.get("feature_names", "").split()) != columns[0] + 1:
        raise unusable(what, "its feature_names are not as many as max_feature_idx says")
    for number, section in enumerate(sections_of(text)[1]):
        _need_whole(f"{what}: tree {number}", section, columns[0] + 1)
    return text


def unusable(what: str, why: str) -> ModelError:
    """The refusal of a file that holds no model's text."""
    return ModelError(f"{what} is not a LightGBM model's text ({why}): save it again with save_model")


def _fields(text: str) -> Mapping[str, str]:
    return dict(line.split("=", 1) for line in text.split("\n") if "=" in line)


def _wholes(what: str, fields: Mapping[str, str], name: str) -> list[int]:
    try:
        return [int(word) for word in fields.get(name, "").split()]
    except ValueError:
        raise unusable(what, f"{name} is {fields[name][:50]!r}, which are no whole numbers") from None


def _need_sizes(what: str, trees: str, head: Mapping[str, str]) -> None:
    """Each tree stands where the head's `tree_sizes`, in bytes, say; LightGBM looks for it there alone."""
    starts = [(int(found[1]), found.start() + 1) for found in _TREE.finditer(trees)]
    if [number for number, _ in starts] != list(range(len(starts))):
        raise unusable(what, "its trees are not numbered 0, 1, 2, …: some are missing, or there twice")
    if "tree_sizes" not in head:
        return
    ends = [start for _, start in starts[1:]] + [len(trees)]
    found = [len(trees[start:end].encode()) for (_, start), end in zip(starts, ends, strict=True)]
    if found != _wholes(what, head, "tree_sizes"):
        raise unusable(what, "its trees are not as long as tree_sizes says: it was cut off or changed")


def _need_whole(what: str, section: Mapping[str, str], columns: int) -> None:
    """A tree has its numbers for every node and leaf, and each of these is led to once, from the root on."""
    told = _wholes(what, section, "num_leaves")
    if len(told) != 1 or told[0] < 1:
        raise unusable(what, "it does not say how many leaves it has")
    leaves = told[0]
    nodes = leaves - 1
    sizes = {name: len(section.get(name, "").split()) for name in _ARRAYS} if nodes else {}
    sizes["leaf_value"] = len(section.get("leaf_value", "").split()) - 1
    wrong = [name for name, size in sizes.items() if size != nodes]
    if wrong:
        raise unusable(what, f"{', '.join(wrong)} are not as many as its {leaves} leaves need")
    if any(not 0 <= column < columns for column in _wholes(what, section, "split_feature") if nodes):
        raise unusable(what, f"it asks for a feature that is none of its {columns}")
    left, right = (_wholes(what, section, name) for name in ("left_child", "right_child"))
    # A child's number is above its parent's, so nothing leads back.
    if nodes and (
        sorted(left + right) != [*range(-leaves, 0), *range(1, nodes)]
        or any(0 <= child <= node for side in (left, right) for node, child in enumerate(side))
    ):
        raise unusable(what, "its branches do not lead to each node and leaf once")
