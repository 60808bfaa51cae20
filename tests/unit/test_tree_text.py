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
from jobs.training.tree_rewriting import rewritten
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
    "objective", ["multiclass num_class:3", "multiclassova num_class:3 sigmoid:1", "softmax", "regression num_class:2"]
)
def test_an_objective_of_several_classes_is_refused_before_lightgbm_reads_it(objective: str) -> None:
    """It answered three numbers into the room of one, and the process ended, though the text says one class."""
    changed = re.sub(r"^objective=.*$", f"objective={objective}", TEXT, flags=re.M)
    with pytest.raises(ModelError, match="one model per output"):
        rewritten(changed, "m.txt")


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
        (re.sub(r"\nleft_child=\S+", "\nleft_child=-2000000000", UNSIZED, count=1), "lead to each node and leaf once"),
        (
            re.sub(r"\nleft_child=\S+ \S+ \S+", "\nleft_child=0 0 0", UNSIZED, count=1),
            "lead to each node and leaf once",
        ),
        (
            re.sub(r"\nsplit_feature=\S+", "\nsplit_feature=100000000", UNSIZED, count=1),
            "a feature that is none of its 2",
        ),
        (re.sub(r"\nthreshold=\S+", "\nthreshold=1e400", UNSIZED, count=1), "a threshold is not finite"),
        (
            re.sub(r"\nthreshold=\S+", "\nthreshold=0x1p4", UNSIZED, count=1),
            "threshold has '0x1p4', which is no number",
        ),
        (re.sub(r"\ndecision_type=\S+", "\ndecision_type=99", UNSIZED, count=1), "not within 0 to 11"),
        (re.sub(r"\ndecision_type=.*", lambda m: re.sub(r"\d+", "1", m[0]), UNSIZED, count=1), "fit its splits"),
        (re.sub(r"\nnum_leaves=\d+", "\nnum_leaves=99999999999", UNSIZED, count=1), "not as many as its"),
        (re.sub(r"\ncat_threshold=\S+", "\ncat_threshold=99999999999", UNSIZED, count=1), "not within 0 to 4294967295"),
        (UNSIZED.replace("objective=regression", "objective=regression a:b"), "its objective is"),
        (UNSIZED.replace("objective=regression", "objective=binary sigmoid:0"), "must be within"),
        (UNSIZED.replace("num_class=1", "num_class=1\nnum_class=1"), "a field stands twice"),
        (UNSIZED.replace("feature_names=f0 f1", "feature_names=f0 f0"), "feature_names are the same"),
        (
            TEXT.replace("pandas_categorical:null", "pandas_categorical:" + "[" * 9_000),
            "pandas_categorical cannot be read",
        ),
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


@pytest.mark.parametrize(
    "more",
    [
        {"objective": "binary", "sigmoid": 2.0},
        {"boosting": "rf", "bagging_fraction": 0.5, "bagging_freq": 1},
        {"zero_as_missing": True},
        {"objective": "poisson"},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_lightgbm_is_given_is_written_anew_and_answers_the_same_bits(
    more: dict[str, object], tmp_path: Path
) -> None:
    truth = (ROWS[:, 0] + ROWS[:, 1] % 7 > 3).astype(float)
    data = lightgbm.Dataset(ROWS, truth, categorical_feature=[1], params={"verbosity": -1})
    trained = lightgbm.train({"verbosity": -1, "num_threads": 1, "min_data_per_group": 2, **more}, data, 8)
    written = trained.model_to_string()
    assert "[num_threads: 1]" in written
    found = read(written.encode(), tmp_path)
    assert "[num_threads: 1]" not in found.model_to_string()
    rows = np.concatenate([ROWS, [[np.nan, 3.0], [0.0, -1.0], [1e30, 1e9], [-1e-36, 0.5]]])
    np.testing.assert_array_equal(found.predict(rows), trained.predict(rows))
    np.testing.assert_array_equal(found.feature_importance("gain"), trained.feature_importance("gain"))


@pytest.mark.parametrize("names", [("Tree", "end of trees"), ("a b", "é=日本"), ("num_leaves", "tree_sizes")])
def test_features_may_be_named_like_parts_of_the_text(names: tuple[str, str], tmp_path: Path) -> None:
    booster = read(text(names).encode(), tmp_path)
    assert len(trees_of(booster, "m.txt")) == 6
    plain = trees_of(lightgbm.Booster(model_str=TEXT), "m.txt")
    assert trees_of(booster, "m.txt") == plain
