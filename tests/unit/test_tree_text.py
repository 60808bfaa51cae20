"""LightGBM's text as files have it: damaged ones are refused before LightGBM, whose parser would end the process."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from almanac.errors import ModelError
from jobs.training.adding import _booster
from jobs.training.trees import trees_of

ROWS = np.random.default_rng(5).normal(size=(400, 2))
ROWS[:, 1] = np.random.default_rng(6).integers(0, 90, 400)


def text(names: tuple[str, str] = ("f0", "f1"), rounds: int = 6) -> str:
    data = lightgbm.Dataset(ROWS, ROWS[:, 0] + ROWS[:, 1] % 7, feature_name=list(names), categorical_feature=[1])
    quiet = {"verbosity": -1, "num_threads": 1, "objective": "regression", "min_data_per_group": 2, "cat_smooth": 1}
    made: str = lightgbm.train(quiet, data, rounds).model_to_string()
    return made


TEXT = text()
UNSIZED = re.sub(r"tree_sizes=.*\n", "", TEXT)


def read(content: bytes, folder: Path) -> lightgbm.Booster:
    (folder / "m.txt").write_bytes(content)
    return _booster(folder / "m.txt")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        *((TEXT[: int(TEXT.index("end of trees") * share)], "was cut off") for share in (0.05, 0.3, 0.7, 0.99)),
        (TEXT[: TEXT.index("Tree=3")], "was cut off"),
        (UNSIZED[: UNSIZED.index("Tree=3")], "was cut off"),
        (TEXT[: TEXT.index("parameters:") + 100], "ends among its parameters"),
        (TEXT[: TEXT.index("Tree=3")] + TEXT[TEXT.index("Tree=4") :], "some are missing"),
        (TEXT.replace("shrinkage=0.1", "shrinkage=0.10", 1), "as long as tree_sizes says"),
        (TEXT + TEXT, "it holds two models"),
        (TEXT + "\n" + TEXT, "it holds two models"),
        ("# mine\n" + TEXT, "does not begin with"),
        (UNSIZED.replace("Tree=3", "Tree=4", 1), "some are missing"),
        (re.sub(r"\nleft_child=\S+", "\nleft_child=500", UNSIZED, count=1), "lead to each node and leaf once"),
        (re.sub(r"\nleft_child=\S+", "\nleft_child=0", UNSIZED, count=1), "lead to each node and leaf once"),
        (re.sub(r"\nsplit_feature=\S+", "\nsplit_feature=-1", UNSIZED, count=1), "a feature that is none of its 2"),
        (re.sub(r"\nsplit_feature=\S+", "\nsplit_feature=2", UNSIZED, count=1), "a feature that is none of its 2"),
        (re.sub(r"\nleaf_value=\S+ ", "\nleaf_value=", UNSIZED, count=1), "leaf_value are not as many"),
        (re.sub(r"\nnum_leaves=\d+", "\nnum_leaves=x", UNSIZED, count=1), "num_leaves is 'x'"),
        (re.sub(r"\ncat_boundaries=.*", "\ncat_boundaries=0 900", UNSIZED, count=1), "categories do not fit"),
        (UNSIZED.replace("max_feature_idx=1", "max_feature_idx=4"), "feature_names are not as many"),
    ],
)
def test_a_damaged_text_is_refused_in_one_line(changed: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"^m\.txt.* is not a LightGBM model's text \(.*{why}.*save_model$"):
        read(changed.encode(), tmp_path)


@pytest.mark.parametrize(
    "same",
    [
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: (text + "\nTree=99\nsomething=else\n").encode(),
        lambda text: text[: text.index("\npandas_categorical")].encode(),
    ],
)
def test_a_text_that_came_another_way_is_the_same_model(same: Callable[[str], bytes], tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        read(same(TEXT), tmp_path).predict(ROWS), lightgbm.Booster(model_str=TEXT).predict(ROWS)
    )


@pytest.mark.parametrize("names", [("Tree", "end of trees"), ("a b", "é=日本"), ("num_leaves", "tree_sizes")])
def test_features_may_be_named_like_parts_of_the_text(names: tuple[str, str], tmp_path: Path) -> None:
    booster = read(text(names).encode(), tmp_path)
    assert len(trees_of(booster, "m.txt")) == 6
    plain = trees_of(lightgbm.Booster(model_str=TEXT), "m.txt")
    assert trees_of(booster, "m.txt") == plain
