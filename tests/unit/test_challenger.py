"""When a challenger may take the champion's place: the gates, by hand and over random measures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.challenger import Challenger, judge
from almanac.errors import DeclarationError
from almanac.manifest import ListMetric, Metric
from almanac.training import Training


def error(mae: float, baseline: float = 1.0, rows: int = 500) -> Metric:
    return Metric(mae=mae, baselines={"as_now": baseline, "mean": 2 * baseline}, rows=rows)


def lists(ndcg: float, popular: float = 0.1, rows: int = 500) -> ListMetric:
    baselines = {"popular": popular, "bought_again": popular / 2}
    return ListMetric(
        length=10, recall=ndcg / 2, ndcg=ndcg, recall_baselines=baselines, ndcg_baselines=baselines, rows=rows
    )


def test_less_error_and_more_ndcg_are_both_better() -> None:
    assert error(0.4).ratio == pytest.approx(0.4)
    assert error(0.4).against(error(0.5)) == pytest.approx(0.8)
    assert lists(0.25).ratio == pytest.approx(0.4)
    assert lists(0.25).against(lists(0.2)) == pytest.approx(0.8)
    said = judge(Challenger(), {"nightly": lists(0.25)}, {"nightly": lists(0.2)}, champion_id="shop-v3")
    assert said.passed
    assert said.champion == "shop-v3"
    assert said.reasons[0] == "0.400 of the better baseline's, at most 1 is allowed"


@pytest.mark.parametrize(
    ("mine", "theirs", "reason"),
    [
        (error(0.5), error(0.5), "1.000 of m-v1's, below 1 is needed"),
        (error(1.1), error(1.2), "1.100 of the better baseline's, at most 1 is allowed"),
        (error(0.1, rows=9), error(0.5), "measured on 9 held-out rows, 100 are needed"),
        (error(0.1, baseline=0.0), error(0.5), "inf of the better baseline's"),
        (lists(0.0), lists(0.1), "inf of the better baseline's"),
        (lists(0.3), error(0.1), "inf of m-v1's"),
    ],
)
def test_what_a_gate_refuses_is_said_first(mine: Metric, theirs: Metric, reason: str) -> None:
    said = judge(Challenger(), {"out": mine}, {"out": theirs}, champion_id="m-v1")
    assert not said.passed
    assert said.reasons[0].startswith(reason)


def test_without_a_champion_the_baselines_alone_decide() -> None:
    assert judge(Challenger(), {"out": error(0.9)}, None, champion_id="").reasons[-1] == "nothing serves yet"
    said = judge(Challenger(), {"out": error(0.9)}, None, champion_id="m-v1")
    assert said.passed
    assert said.reasons[-1] == "m-v1 could not be measured here"
    assert (said.champion, said.against_champion) == ("m-v1", None)
    assert not judge(Challenger(), {"out": error(1.2)}, None, champion_id="").passed
    assert not judge(Challenger(), {}, None, champion_id="").passed
    other = judge(Challenger(), {"out": error(0.9)}, {"other": error(0.9)}, champion_id="m-v1")
    assert not other.passed


@given(st.lists(st.tuples(st.floats(0.01, 9), st.floats(0.01, 9)), min_size=1, max_size=5), st.floats(0.5, 1.5))
def test_two_models_never_beat_each_other_and_a_stricter_gate_passes_no_more(
    errors: list[tuple[float, float]], most: float
) -> None:
    one = {str(place): error(mine) for place, (mine, _) in enumerate(errors)}
    other = {str(place): error(theirs) for place, (_, theirs) in enumerate(errors)}
    gates = Challenger(baseline_max=100)
    assert not (judge(gates, one, other, champion_id="b").passed and judge(gates, other, one, champion_id="a").passed)
    looser = judge(Challenger(baseline_max=100, champion_max=most), one, other, champion_id="b").passed
    stricter = judge(Challenger(baseline_max=100, champion_max=most / 2), one, other, champion_id="b").passed
    assert looser or not stricter


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schedule", "weekly", "cron expression of five fields"),
        ("champion_max", 0.0, "Challenger.champion_max"),
        ("baseline_max", float("nan"), "Challenger.baseline_max"),
        ("rows_min", 0, "Challenger.rows_min"),
    ],
)
def test_gates_that_say_nothing_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        Challenger(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match=r"Training\.challenger"):
        Training(challenger="weekly")  # type: ignore[arg-type]
