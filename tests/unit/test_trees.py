"""LightGBM's trees as ONNX: the same answer for every number that a feature can be, or a refusal that names it."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from almanac.errors import ModelError
from almanac.manifest import Parity, Reference
from almanac.scoring import Scorer
from jobs.training.boundaries import ODD_CATEGORIES, ROWS_MAX
from jobs.training.convert import Fitted, Link, Recipe, to_onnx
from jobs.training.declared import as_read
from jobs.training.evaluate import EXPECTED, golden_rows, prove
from jobs.training.trees import ZERO_BAND, category_pieces, cuts_of, number_pieces, trees_of

Matrix = NDArray[np.float64]
QUIET: dict[str, Any] = {"verbosity": -1, "num_threads": 1, "deterministic": True, "min_data_in_bin": 1}
MODELS_TRIED = int(os.environ.get("ALMANAC_TEST_MODELS", "20"))
"""How many models are drawn: `ALMANAC_TEST_MODELS=5000` looks for longer."""


@dataclass(frozen=True)
class Proved:
    """A model as it is registered: proved on golden rows."""

    scorer: Scorer
    parity: Parity
    golden: pa.Table


def proved(
    booster: lightgbm.Booster,
    real: Matrix,
    *,
    doubles: bool = True,
    link: Link = "identity",
    steepness: float = 1.0,
    differences: tuple[tuple[str, str], ...] = (),
) -> Proved:
    names = tuple(booster.feature_name())[: real.shape[1]]
    recipe = Recipe(inputs=names, differences=differences, doubles=frozenset(names if doubles else ()))
    plain = Reference(weights={}, damping=1.0)
    fitted = Fitted(output="y", booster=booster, reference=plain, link=link, steepness=steepness)
    scorer = Scorer.open(to_onnx(recipe, [fitted]), "m", entity="station")
    table = as_read(pa.table(dict(zip(names, real.T, strict=True))), recipe.doubles)
    golden = golden_rows(recipe, [fitted], table, seed=1)
    return Proved(scorer, prove(scorer, golden), pq.read_table(pa.BufferReader(golden)))


def answers(model: Proved, rows: Matrix) -> NDArray[np.float32]:
    return model.scorer.score({name: rows[:, at] for at, name in enumerate(model.scorer.inputs)})["y"]


def trained(rows: Matrix, truth: NDArray[Any], rounds: int = 8, categories: Any = (), **more: Any) -> lightgbm.Booster:
    names = [f"f{at}" for at in range(rows.shape[1])]
    data = lightgbm.Dataset(rows, truth, feature_name=names, categorical_feature=list(categories), params=dict(QUIET))
    booster = lightgbm.train({"objective": "regression", **QUIET, **more}, data, rounds)
    return lightgbm.Booster(model_str=booster.model_to_string())


def alike(model: Proved, booster: lightgbm.Booster, rows: Matrix) -> None:
    expected = booster.predict(rows)
    np.testing.assert_allclose(answers(model, rows), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("doubles", [True, False])
def test_a_zero_that_is_missing_goes_the_way_lightgbm_sends_it(doubles: bool) -> None:
    random = np.random.default_rng(3)
    rows = random.normal(size=(600, 2)).astype(np.float32).astype(np.float64)
    rows[::3, 0] = 0
    truth = np.where(rows[:, 0] == 0, 7.35, np.where(rows[:, 0] < 0, -4.99, 1.0)) + rows[:, 1]
    booster = trained(rows, truth, 30, zero_as_missing=True)
    without = rows[rows[:, 0] != 0][:50]  # what the newest features are: none of them zero
    model = proved(booster, without, doubles=doubles)
    zeros = np.array([[zero, 0.3] for zero in (0.0, -0.0, 1e-36, -1e-36, ZERO_BAND, -ZERO_BAND, 2e-35, -2e-35)])
    zeros = zeros if doubles else zeros.astype(np.float32).astype(np.float64)
    alike(model, booster, zeros)
    assert abs(answers(model, zeros)[0] - 7.65) < 1
    assert (model.golden["f0"].to_numpy() == 0).any()
    assert model.parity.splits_reached == model.parity.splits > 30


def test_seconds_of_today_are_told_apart() -> None:
    """A threshold 200 s after 1.7e9, which float32 rounds to steps of 128 s."""
    random = np.random.default_rng(5)
    start = 1_700_000_000.0
    rows = np.column_stack([start + random.integers(0, 600, 800), random.normal(size=800)])
    truth = np.where(rows[:, 0] > start + 200, 9.36, 0.57)
    booster = trained(rows, truth, 60, learning_rate=0.3)
    model = proved(booster, rows[rows[:, 0] < start + 100][:40])
    near = np.array([[start + 200 + step, 0.0] for step in (-1, -0.001, 0, 0.001, 1, 2, 64)])
    alike(model, booster, near)
    assert answers(model, near)[0] == pytest.approx(0.57, abs=0.01)
    assert answers(model, near)[-1] == pytest.approx(9.36, abs=0.01)
    assert model.scorer.dtype is np.float64
    assert model.golden["f0"].type == pa.float64()
    whole = model.scorer.score({"f0": np.array([1_700_000_200, 1_700_000_201]), "f1": np.zeros(2)})["y"]
    np.testing.assert_array_equal(whole, answers(model, np.array([[start + 200, 0], [start + 201, 0]])))


def test_a_float32_feature_is_rounded_to_float32_wherever_it_was_read() -> None:
    """Beside a float64 feature: a file that has doubles, or an event's number, asks the same as the online store."""
    rows = np.column_stack([np.linspace(1.7e9, 1.7e9 + 600, 300), np.linspace(0, 1, 300)])
    booster = trained(rows, rows[:, 1] * 100, 20)
    recipe = Recipe(inputs=("f0", "f1"), differences=(), doubles=frozenset({"f0"}))
    fitted = Fitted(output="y", booster=booster, reference=Reference(weights={}, damping=1.0))
    scorer = Scorer.open(to_onnx(recipe, [fitted]), "m", entity="station")
    assert scorer.dtypes == ("float64", "float32")
    (cut, *_) = cuts_of(fitted.trees, 1)
    right_after = np.nextafter(cut, np.inf)
    columns = {"f0": np.full(1, 1.7e9), "f1": np.full(1, right_after)}
    narrow = {**columns, "f1": columns["f1"].astype(np.float32)}
    assert scorer.score(columns)["y"] == scorer.score(narrow)["y"]
    expected = booster.predict(np.array([[1.7e9, np.float64(np.float32(right_after))]]))
    np.testing.assert_allclose(scorer.score(columns)["y"], expected, rtol=1e-6)
    assert list(scorer.usable("f0", np.array([1e300, np.nan]))) == [True, False]
    assert list(scorer.usable("f1", np.array([1e300, 1.0]))) == [False, True]


@pytest.mark.parametrize("doubles", [True, False])
def test_a_category_loses_its_fraction_as_in_lightgbm(doubles: bool) -> None:
    random = np.random.default_rng(7)
    rows = np.column_stack([random.integers(0, 100, 3000), random.normal(size=3000)]).astype(np.float32)
    means = random.permutation(100) * 0.78
    truth = means[rows[:, 0].astype(int)] + rows[:, 1]
    more = {"min_data_per_group": 5, "cat_smooth": 1, "max_cat_threshold": 60}
    booster = trained(rows.astype(np.float64), truth, 20, [0], **more)
    model = proved(booster, rows.astype(np.float64)[:60], doubles=doubles)
    odd = [*ODD_CATEGORIES, 12.5, 12.999, 99.5, 100.0, 1e10, 3.4e38, 0.999, -0.999, -1.001]
    tried = np.array([[value, 0.1] for value in [*odd, *(np.arange(100) + 0.5), *np.arange(100)]])
    alike(model, booster, tried.astype(np.float32).astype(np.float64))
    np.testing.assert_array_equal(answers(model, np.array([[12.5, 0.1]])), answers(model, np.array([[12.0, 0.1]])))
    seen = set(model.golden["f0"].to_numpy()[60:].tolist())
    assert {-1.0, -0.5, 2.0**31} <= seen
    assert model.parity.splits_reached == model.parity.splits


def test_pieces_are_what_lightgbm_asks() -> None:
    assert category_pieces([0, 1, 5]) == ((-1.0, False), (2 - 2**-52, True), (5 - 2**-50, False), (6 - 2**-50, True))
    assert category_pieces([]) == ()
    none, zero_right, zero_left = 0, 1 << 2, 1 << 2 | 2
    below = float(np.nextafter(-ZERO_BAND, -1))
    assert number_pieces(2.5, none) == ((2.5, True),)
    assert number_pieces(0.0, none) == ((ZERO_BAND, True),)
    assert number_pieces(2.5, zero_left) == ((2.5, True),)
    assert number_pieces(2.5, zero_right) == ((below, True), (ZERO_BAND, False), (2.5, True))
    assert number_pieces(-2.5, zero_right) == ((-2.5, True),)
    assert number_pieces(-2.5, zero_left) == ((-2.5, True), (below, False), (ZERO_BAND, True))


@pytest.mark.parametrize("boosting", ["gbdt", "dart", "rf"])
def test_averages_and_trees_without_a_split(boosting: str) -> None:
    rows = np.random.default_rng(9).normal(size=(300, 2))
    booster = trained(rows, rows[:, 0] * 5 + 20, 12, boosting=boosting, bagging_freq=1, bagging_fraction=0.6)
    alike(proved(booster, rows), booster, rows)
    nothing = trained(rows, np.full(300, 3.5), 2, boosting=boosting, bagging_freq=1, bagging_fraction=0.6)
    np.testing.assert_allclose(answers(proved(nothing, rows), rows), nothing.predict(rows))


def test_differences_are_reached_at_their_cuts() -> None:
    rows = np.random.default_rng(11).normal(280, 3, size=(400, 3)).astype(np.float32)
    recipe = Recipe(inputs=("f0", "f1", "f2"), differences=(("f0", "f1"),))
    columns = recipe.apply(rows)
    booster = trained(columns.astype(np.float64), columns[:, 3] * 2 + columns[:, 2] * 0.1, 10)
    fitted = Fitted(output="y", booster=booster, reference=Reference(weights={"f0": 1.0}, damping=0.5))
    scorer = Scorer.open(to_onnx(recipe, [fitted]), "m", entity="cell")
    parity = prove(scorer, golden_rows(recipe, [fitted], pa.table(dict(zip(recipe.inputs, rows.T, strict=True))), 1))
    assert parity.rows == 400
    assert parity.splits_reached > parity.splits / 2


def test_a_rare_event_is_proved_by_its_own_size() -> None:
    """A wrong answer of 1e-4 is as large as the whole chance; no share of 1 hides it."""
    rows = np.random.default_rng(13).normal(size=(3000, 2))
    truth = (rows[:, 0] > 3).astype(float)
    booster = trained(rows, truth, 3, objective="binary", sigmoid=2.5, min_child_samples=5)
    model = proved(booster, rows, link="sigmoid", steepness=2.5)
    np.testing.assert_allclose(answers(model, rows), booster.predict(rows), rtol=1e-5)
    column = model.golden[EXPECTED + "y"].to_numpy() * (1 + 1e-4)
    sink = io.BytesIO()
    pq.write_table(model.golden.drop_columns([EXPECTED + "y"]).append_column(EXPECTED + "y", pa.array(column)), sink)
    with pytest.raises(ModelError, match=r"differ by .* in y on a golden row, .*; the row is \{'f0': "):
        prove(model.scorer, sink.getvalue())


def test_what_cannot_be_said_is_refused_by_feature() -> None:
    rows = np.random.default_rng(15).normal(size=(400, 2))
    linear = trained(rows, rows[:, 0] ** 2, 3, linear_tree=True)
    with pytest.raises(ModelError, match=r"m\.txt has linear models of f0(, f1)? in its leaves.*linear_tree=false"):
        trees_of(linear, "m.txt")
    import pandas as pd

    frame = pd.DataFrame({"kind": pd.Categorical([10, 20, 30, 20] * 100), "x": rows[:, 0]})
    data = lightgbm.Dataset(frame, frame["kind"].astype(float) ** 2)
    coded = lightgbm.train({"objective": "regression", **QUIET, "min_data_per_group": 1}, data, 3)
    again = lightgbm.Booster(model_str=coded.model_to_string())
    with pytest.raises(ModelError, match=r"pandas categories \(\[\[10, 20, 30\]\]\) and knows kind by their codes"):
        trees_of(again, "m.txt")


def test_a_large_model_is_proved_on_a_bounded_number_of_rows() -> None:
    rows = np.random.default_rng(17).normal(size=(6000, 4))
    booster = trained(rows, np.sin(rows @ np.arange(1, 5)), 60, num_leaves=127, min_child_samples=2)
    parity = proved(booster, rows[:100]).parity
    assert parity.splits > ROWS_MAX / 2
    assert parity.boundary_rows <= ROWS_MAX
    assert 0 < parity.splits_reached < parity.splits


def column(random: np.random.Generator, rows: int) -> tuple[Matrix, bool]:
    """A feature of one of many kinds, and whether it is a category."""
    plain = random.normal(size=rows)
    kind = random.integers(7)
    if kind == 0:
        return np.where(random.random(rows) < 0.4, 0, plain), False
    if kind == 1:
        return random.integers(0, random.choice([3, 40, 300]), rows).astype(float), True
    if kind == 2:
        return 1.7e9 + random.integers(0, 4000, rows), False
    if kind == 3:
        return random.choice([0, 1e-36, -1e-36, 1e-35, -1e-35, 2e-35, -3e-35, 1], rows), False
    if kind == 4:
        return plain * 10.0 ** random.integers(-38, 38), False
    if kind == 5:
        return np.where(random.random(rows) < 0.3, np.nan, plain), False
    return plain, False


@settings(max_examples=MODELS_TRIED, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_models_answer_as_lightgbm_does(seed: int) -> None:
    random = np.random.default_rng(seed)
    columns, categories = zip(*(column(random, 300) for _ in range(4)), strict=True)
    rows = np.column_stack(columns)
    truth = sum(random.normal(size=11)[np.unique(part, return_inverse=True)[1] % 11] for part in columns)
    booster = trained(
        rows,
        truth,
        4,
        np.flatnonzero(categories).tolist(),
        num_leaves=int(random.integers(2, 16)),
        min_child_samples=3,
        min_data_per_group=3,
        max_cat_threshold=int(random.choice([4, 200])),
        max_cat_to_onehot=int(random.choice([1, 100])),
        cat_smooth=1,
        cat_l2=0.1,
        zero_as_missing=bool(random.random() < 0.4),
        use_missing=bool(random.random() < 0.8),
        boosting=str(random.choice(["gbdt", "rf", "dart"])),
        bagging_freq=1,
        bagging_fraction=0.7,
        seed=int(random.integers(2**31)),
    )
    doubles = bool(random.random() < 0.5)
    real = np.nan_to_num(rows) if doubles else np.nan_to_num(rows).astype(np.float32).astype(np.float64)
    model = proved(booster, real, doubles=doubles)
    mixed = np.column_stack([random.permutation(model.golden[name].to_numpy()) for name in model.scorer.inputs])
    alike(model, booster, mixed.astype(np.float64))


def test_who_answers_otherwise_is_told_at_which_feature_and_what_to_do() -> None:
    """One engine takes a number to lie left of a split and the other right of it."""
    rows = np.random.default_rng(13).normal(280, 3, size=(400, 2)).astype(np.float32).astype(np.float64)
    booster = trained(rows, np.where(rows[:, 1] > 281, 40.0, 0.0) + rows[:, 0] / 100, 4)
    model = proved(booster, rows)
    other_side = float(booster.predict([[280.0, 290.0]])[0])
    split = next(one for one in booster.trees_to_dataframe()["threshold"].dropna() if 280.5 < one < 281.5)

    def refused(value: float, said: str) -> None:
        sink = io.BytesIO()
        pq.write_table(pa.table({"f0": [280.0], "f1": [value], EXPECTED + "y": [other_side]}), sink)
        with pytest.raises(ModelError, match=said):
            prove(model.scorer, sink.getvalue())

    refused(split, r"differ by .*: not registered; the answer turns at f1 = 28[01]\..*: declare f1 as Float64")
    refused(270.0, r"no feature's next number turns the answer: .*; the row is {'f0': 280\.0, ")
