"""What must be so whatever minute it is: how far a rehearsal goes back, whose DAGs it pauses, what is a change."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest

from almanac import airflow_pause
from almanac.airflow_api import AirflowApi
from almanac.airflow_pause import PausedDags, dags_paused
from almanac.clock import HOUR, floor_hour
from almanac.demo.stages import _changed
from almanac.errors import Unavailable, UsageError
from almanac.pipeline import Pipeline
from almanac.settings import load_settings
from features.online import NEWEST_AT
from jobs import rehearse
from pipelines.shop import shop
from pipelines.weather import weather
from tests.turn.__main__ import STAGES_IN_TURN, everywhere, quick
from tests.turn.demonstration import At, Where

DAY = timedelta(days=1)
TEN = datetime(2026, 3, 10, 10, tzinfo=UTC)
NOBODY = "http://127.0.0.1:9"


@pytest.mark.parametrize("minutes", [0, 1, 58, 59])
def test_a_rehearsal_goes_back_as_far_whatever_minute_it_is_and_its_events_do_not_expire(minutes: int) -> None:
    now = TEN + timedelta(minutes=minutes, seconds=59)
    hours = rehearse.hours_max(DAY, now - floor_hour(now))
    assert hours == 23
    first_events = floor_hour(now) - hours * HOUR + HOUR
    assert now + timedelta(minutes=30) - first_events < DAY


def test_a_source_that_is_behind_is_rehearsed_less_far() -> None:
    assert rehearse.hours_max(DAY, timedelta(hours=3, minutes=20)) == 20


def test_pipelines_that_share_a_view_or_a_model_are_paused_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = load_settings(state_dir=tmp_path)
    same_features = replace(weather, name="frost", model="frost@champion")
    same_model = replace(shop, name="bazaar", model="weather@champion")
    declared = {one.name: one for one in (weather, same_features, same_model, shop)}
    monkeypatch.setattr(rehearse, "pipelines", lambda: declared)

    def names(pipeline: Pipeline) -> set[str]:
        return {one.name for one in rehearse.moved_with(pipeline, settings)}

    assert names(weather) == {"weather", "frost", "bazaar"}
    assert names(shop) == {"shop", "bazaar"}


class Online:
    """Features online as of some moments, for the events of whatever time."""

    def __init__(self, newest: list[datetime | None]) -> None:
        self.newest = newest

    def read(self, entities: range) -> pa.Table:
        """As `OnlineFeatures.read`, of dated ones."""
        return pa.table({NEWEST_AT: pa.array([*self.newest, *[None] * (len(entities) - len(self.newest))])})


def test_events_older_than_the_features_online_are_refused_before_they_are_sent() -> None:
    rehearse.check_in_time(weather, Online([TEN, None, TEN - HOUR]), TEN)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"features of 1 of 1,617 cells .* as of 2026-03-10T10:00:00Z, .* too late"):
        rehearse.check_in_time(weather, Online([TEN, None, TEN - HOUR]), TEN - HOUR)  # type: ignore[arg-type]


def answer(*outputs: tuple[float | None, str]) -> dict[str, Any]:
    return {
        "outputs": {f"t2m_{n}h": {"value": value, "verdict": verdict} for n, (value, verdict) in enumerate(outputs)}
    }


def test_an_output_whose_moment_has_passed_is_no_change_and_another_number_is_one() -> None:
    before = answer((281.0, "fresh"), (282.0, "fresh"))
    assert not _changed(before, before)
    assert not _changed(before, answer((None, "expired"), (282.0, "fresh")))
    assert _changed(before, answer((None, "expired"), (282.5, "fresh")))
    assert _changed(before, answer((None, "fresh"), (282.0, "fresh")))


def test_an_airflow_that_does_not_answer_is_said_at_once_and_later_does_not_end_what_was_begun() -> None:
    at = load_settings(airflow_url=NOBODY, airflow_password="none")
    said: list[str] = []
    with pytest.raises(Unavailable, match="did not answer"), dags_paused(at, [weather], said.append):
        pytest.fail("nothing was paused")
    assert said == []
    with AirflowApi(at) as airflow:
        paused = PausedDags(airflow, [weather], said.append)
        for _look in range(2):
            paused.check()
    assert len(said) == 1
    assert "did not answer" in said[0]
    assert "its DAGs were paused before, and this goes on" in said[0]


class Late:
    """An Airflow that is too late with one answer about what is at work, and then says that something is."""

    def __init__(self) -> None:
        self.answers: list[list[str] | None] = [[], None, ["score of weather"], [], []]

    def paused_by_dag(self, _tags: list[str]) -> dict[str, bool]:
        """As `AirflowApi.paused_by_dag`."""
        return {"weather": True}

    def at_work(self, _dags: list[str]) -> list[str]:
        """As `AirflowApi.at_work`."""
        answer = self.answers.pop(0)
        if answer is None:
            raise Unavailable("Airflow did not answer")
        return answer


def test_an_airflow_that_is_late_once_is_asked_again_for_what_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow_pause, "POLL_SECONDS", 0.001)
    said: list[str] = []
    PausedDags(late := Late(), [weather], said.append).pause()  # type: ignore[arg-type]
    assert late.answers == []
    assert said == ["waiting for what is at work to end: score of weather"]
    monkeypatch.setattr(airflow_pause, "AWAY_SECONDS_MAX", 0.0)
    late = Late()
    with pytest.raises(Unavailable, match="did not answer"):
        PausedDags(late, [weather], said.append).pause()  # type: ignore[arg-type]
    assert late.answers == [["score of weather"], [], []]


def test_signals_are_as_they_were_after_dags_were_paused() -> None:
    at = load_settings(airflow_url=NOBODY, airflow_password="none")
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(Unavailable), dags_paused(at, [weather], print):
        pass
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize("pipeline", sorted(STAGES_IN_TURN))
def test_an_hour_turns_before_within_and_after_each_stage_and_never_twice_before_airflow_may_have_run(
    pipeline: str,
) -> None:
    ranges = STAGES_IN_TURN[pipeline]
    shown = list(everywhere(ranges))
    every = {At(stage, where) for stages in ranges for stage in stages for where in get_args(Where)}
    assert {at for turns in shown for at in turns} == every
    for turns in shown:
        assert len({next(stages for stages in ranges if at.stage in stages) for at in turns}) == len(turns)


def test_the_short_forms_of_consecutive_commits_show_every_place_of_both_demonstrations() -> None:
    count = sum(len(list(everywhere(ranges))) for ranges in STAGES_IN_TURN.values())
    shown = {(pipeline, at) for pipeline, turns in map(quick, range(100, 100 + count)) for at in turns}
    assert len(shown) == 3 * sum(len(stages) for ranges in STAGES_IN_TURN.values() for stages in ranges)
