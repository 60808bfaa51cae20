"""A model's text written anew for LightGBM from what was read of it: its parser sees no byte of somebody else's.

LightGBM's parser believes what a text says of its own sizes and places, and ends the process or reads past its memory
where that is wrong. Here each field that answers is read strictly, as a number within its limits; what does not answer
is written anew where it can be read, and left out where not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from almanac.errors import ModelError
from jobs.training.tree_text import END, sections_of, unusable

Number = TypeVar("Number", int, float)

LEAVES_MAX = 1 << 17
"""Leaves of one tree; LightGBM's own limit."""
CATEGORY_WORDS_MAX = 65_536
"""Numbers of `cat_threshold` in one tree, each of 32 categories."""
CATEGORICAL, DECISION_MAX = 1, 11
"""Bits of `decision_type`: categorical, default left, and as two bits what is missing, of which three are not used."""
_COUNT_MAX = 2**31 - 1
_WHOLE = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_FLOAT = re.compile(
    r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,5})?|[+-]?(?:nan|inf)", re.ASCII
)
_OBJECTIVE = re.compile(
    r"[a-z][a-z0-9_]{0,40}(?: (?:sqrt|[a-z_]{1,40}:[+-]?[0-9.]{1,30}(?:e[+-]?[0-9]{1,3})?))*", re.ASCII
)
_SEVERAL = re.compile(r"^\s*(?:multi|softmax|ov[ar])|num_class")
_RANGE = re.compile(r"none|\[[0-9.e+-]{1,40}:[0-9.e+-]{1,40}\]|-?[0-9]{1,10}(?::-?[0-9]{1,10}){0,100000}", re.ASCII)
_PANDAS = "\npandas_categorical:"


def rewritten(text: str, what: str) -> str:
    """The same model as a text of ours, without the parameters that it was trained with.

    Args:
        text: as `read_text` gave it.
        what: names the file in errors.

    Raises:
        ModelError: it holds what is no number, or numbers that no model of LightGBM has; says where.
    """
    head, sections = sections_of(text)
    fields = _once(what, head)
    names = fields.get("feature_names", "").split()
    _need_plain(what, fields, sections, names)
    trees = [
        f"Tree={number}\n{_tree(f'{what}: tree {number}', one, len(names))}\n\n" for number, one in enumerate(sections)
    ]
    lines = [
        "tree", "version=v4", "num_class=1", "num_tree_per_iteration=1", "label_index=0",
        f"max_feature_idx={len(names) - 1}",
        *([f"objective={_objective(what, fields['objective'])}"] if "objective" in fields else []),
        *(["average_output"] if "average_output" in head.split("\n") else []),
        f"feature_names={' '.join(names)}",
        f"feature_infos={' '.join(_ranges(fields, len(names)))}",
        f"tree_sizes={' '.join(str(len(tree.encode())) for tree in trees)}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n\n" + "".join(trees) + END.lstrip("\n") + "\n" + _pandas(what, text)


def _once(what: str, text: str) -> Mapping[str, str]:
    pairs = [line.split("=", 1) for line in text.split("\n") if "=" in line]
    found = dict(pairs)
    if len(found) != len(pairs):
        raise unusable(what, "a field stands twice in it")
    return found


def _need_plain(what: str, fields: Mapping[str, str], sections: Sequence[Mapping[str, str]], names: list[str]) -> None:
    """Refuse what no graph of ours says: several numbers a row, and linear models in leaves."""
    if len(set(names)) != len(names):
        raise unusable(what, "two of its feature_names are the same")
    counts = [fields.get(name, "1").strip() for name in ("num_class", "num_tree_per_iteration")]
    # An objective of several classes writes so many answers, wherever the text says that there is one.
    if counts != ["1", "1"] or not sections or _SEVERAL.search(fields.get("objective", "")):
        raise ModelError(f"{what} does not answer one number a row: train one model per output")
    if any(section.get("is_linear", "0").strip() != "0" for section in sections):
        words = {word for section in sections for word in section.get("leaf_features", "").split()}
        used = sorted(int(word) for word in words if word.isascii() and word.isdigit() and int(word) < len(names))
        raise ModelError(
            f"{what} has linear models of {', '.join(names[index] for index in used) or 'no feature'} in its "
            "leaves, which ONNX's trees cannot say: train it with linear_tree=false"
        )


def _tree(what: str, section: Mapping[str, str], columns: int) -> str:
    (leaves,) = _wholes(what, section, "num_leaves", (1, LEAVES_MAX))
    nodes = leaves - 1
    kinds = _wholes(what, section, "decision_type", (0, DECISION_MAX)) if nodes else []
    bounds, words = _categories(what, section, kinds)
    lines = [f"num_leaves={leaves}", f"num_cat={len(bounds) - 1}"]
    if nodes:
        thresholds = _floats(what, section, "threshold")
        for kind, threshold in zip(kinds, thresholds, strict=True):
            if not math.isfinite(threshold):
                raise unusable(what, "a threshold is not finite")
            if kind & CATEGORICAL and not (threshold.is_integer() and 0 <= threshold < len(bounds) - 1):
                raise unusable(what, "its categories do not fit its splits")
        places = [
            str(int(one)) if kind & CATEGORICAL else repr(one) for kind, one in zip(kinds, thresholds, strict=True)
        ]
        lines += [
            _line("split_feature", _wholes(what, section, "split_feature", (0, columns - 1))),
            *_kept(section, "split_gain", nodes),
            f"threshold={' '.join(places)}",
            _line("decision_type", kinds),
            _line("left_child", _wholes(what, section, "left_child", (-leaves, nodes))),
            _line("right_child", _wholes(what, section, "right_child", (-leaves, nodes))),
        ]
    lines.append(_line("leaf_value", _floats(what, section, "leaf_value")))
    if nodes:
        lines += _kept(section, "leaf_weight", leaves) + _kept(section, "leaf_count", leaves, whole=True)
        lines += _kept(section, "internal_value", nodes) + _kept(section, "internal_weight", nodes)
        lines += _kept(section, "internal_count", nodes, whole=True)
    if len(bounds) > 1:
        lines += [_line("cat_boundaries", bounds), _line("cat_threshold", words)]
    return "\n".join([*lines, "is_linear=0", *(_kept(section, "shrinkage", 1) or ["shrinkage=1"])])


def _categories(what: str, section: Mapping[str, str], kinds: Sequence[int]) -> tuple[list[int], list[int]]:
    """The boundaries of the categories' words, and these; `[0]` and none where no split is categorical."""
    if not any(kind & CATEGORICAL for kind in kinds):
        return [0], []
    words = _wholes(what, section, "cat_threshold", (0, 2**32 - 1))
    if len(words) > CATEGORY_WORDS_MAX:
        raise unusable(what, f"it has more than {CATEGORY_WORDS_MAX:,} numbers of categories")
    bounds = _wholes(what, section, "cat_boundaries", (0, _COUNT_MAX))
    if bounds[:1] != [0] or bounds != sorted(bounds) or bounds[-1] != len(words) or len(bounds) > len(kinds) + 1:
        raise unusable(what, "its categories do not fit its splits")
    return bounds, words


def _wholes(what: str, section: Mapping[str, str], name: str, limits: tuple[int, int]) -> list[int]:
    found = _numbers(what, section, name, _WHOLE, int)
    if any(not limits[0] <= one <= limits[1] for one in found):
        raise unusable(what, f"{name} has a number that is not within {limits[0]} to {limits[1]}")
    return found


def _floats(what: str, section: Mapping[str, str], name: str) -> list[float]:
    return _numbers(what, section, name, _FLOAT, float)


def _numbers(
    what: str, section: Mapping[str, str], name: str, form: re.Pattern[str], kind: Callable[[str], Number]
) -> list[Number]:
    words = section.get(name, "").split()
    wrong = next((word for word in words if not form.fullmatch(word)), None)
    if wrong is not None:
        raise unusable(what, f"{name} has {wrong[:40]!r}, which is no number")
    return [kind(word) for word in words]


def _kept(section: Mapping[str, str], name: str, count: int, *, whole: bool = False) -> list[str]:
    """A line of what answers nothing, if it can be read."""
    words = section.get(name, "").split()
    if len(words) != count or not all((_WHOLE if whole else _FLOAT).fullmatch(word) for word in words):
        return []
    found = [float(word) for word in words]
    if not all(math.isfinite(one) and abs(one) <= _COUNT_MAX for one in found):
        return []
    return [_line(name, [int(one) for one in found] if whole else found)]


def _line(name: str, numbers: Sequence[int] | Sequence[float]) -> str:
    return f"{name}={' '.join(map(repr, numbers))}"


def _objective(what: str, text: str) -> str:
    words = " ".join(text.split())
    if len(words) > 200 or not _OBJECTIVE.fullmatch(words):
        raise unusable(what, f"its objective is {words[:60]!r}")
    for word in words.split():
        name, _, value = word.partition(":")
        if name == "sigmoid" and not 1e-6 <= _positive(value) <= 1e6:
            raise unusable(what, f"its objective says {word!r}, which must be within 1e-6 to 1e6")
    return words


def _positive(text: str) -> float:
    return float(text) if _FLOAT.fullmatch(text) else 0.0


def _ranges(fields: Mapping[str, str], columns: int) -> list[str]:
    """What is said of each feature's values; nothing where it cannot be read, for it answers nothing."""
    words = fields.get("feature_infos", "").split()
    return words if len(words) == columns and all(_RANGE.fullmatch(word) for word in words) else ["none"] * columns


def _pandas(what: str, text: str) -> str:
    """The line of pandas' categories at the end, by which codes are refused that are no numbers of the feature."""
    _, stands, rest = text.rpartition(_PANDAS)
    if not stands:
        return ""
    try:
        found = json.loads(rest.split("\n", 1)[0])
    except (ValueError, RecursionError):
        raise unusable(what, "its pandas_categorical cannot be read") from None
    flat = found is None or (isinstance(found, list) and all(isinstance(one, list) for one in found))
    if not flat or any(isinstance(value, dict | list) for one in found or () for value in one):
        raise unusable(what, "its pandas_categorical cannot be read")
    return f"\npandas_categorical:{json.dumps(found)}\n"
