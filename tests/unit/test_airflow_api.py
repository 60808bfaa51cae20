"""The client of Airflow's API: tokens that end, lists of many pages, answers that are not Airflow's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from almanac import airflow_api
from almanac.airflow_api import AirflowApi, TaskState
from almanac.errors import Unavailable, UsageError
from almanac.settings import load_settings
from tests.airflows import PASSWORD, TOKEN_SECONDS, Airflow, serving


@pytest.fixture
def airflow() -> Iterator[Airflow]:
    with serving() as server:
        yield server


@pytest.fixture
def api(airflow: Airflow, tmp_path: Path) -> Iterator[AirflowApi]:
    with AirflowApi(load_settings(state_dir=tmp_path, airflow_url=airflow.url, airflow_password=PASSWORD)) as client:
        yield client


def test_a_token_of_20_seconds_is_taken_anew_while_a_backfill_is_followed(airflow: Airflow, api: AirflowApi) -> None:
    for _look in range(10):
        assert api.call("GET", "/backfills/7")["completed_at"] is None
    assert airflow.logins == 5  # a token does for two requests of seven seconds


def test_what_was_refused_for_its_token_is_begun_once(airflow: Airflow, api: AirflowApi) -> None:
    api.run_state("weather", "run")
    airflow.clock += TOKEN_SECONDS
    assert api.trigger("weather", partition_key=None, note="by hand") == "run"
    assert [body["note"] for body in airflow.started] == ["by hand"]


def test_a_token_that_a_server_with_another_secret_refuses_is_taken_anew(airflow: Airflow, api: AirflowApi) -> None:
    api.run_state("weather", "run")
    airflow.tokens.clear()  # as a server that was set up again
    assert api.run_state("weather", "run") == "failed"
    assert airflow.logins == 2


def test_a_password_that_changed_meanwhile_is_said_and_not_tried_for_ever(airflow: Airflow, api: AirflowApi) -> None:
    api.run_state("weather", "run")
    airflow.tokens.clear()
    airflow.password = "another"
    with pytest.raises(UsageError, match=r"refused to log in \(401\): Invalid credentials: .* credentials"):
        api.run_state("weather", "run")


def test_of_150_shards_the_131st_that_failed_is_shown_with_its_reason(airflow: Airflow, api: AirflowApi) -> None:
    airflow.tasks = ["success"] * 150
    airflow.tasks[130] = "failed"
    steps = list(api.follow("weather", "run", timeout_seconds=60))
    assert len([step for step in steps if isinstance(step, TaskState)]) == 150  # none has a label, and each is shown
    assert [step.map_index for step in steps if isinstance(step, TaskState) and step.state == "failed"] == [130]
    assert steps[-1] == "failed"
    assert api.why_failed("weather", "run") == "score [130]: DataError: shard 131 has no rows"


@pytest.mark.parametrize("page_limit", [7, 100, 1000])
def test_every_list_is_read_whole_whatever_page_airflow_gives(
    airflow: Airflow, api: AirflowApi, page_limit: int
) -> None:
    airflow.page_limit = page_limit
    airflow.tasks = ["running"] * 131
    airflow.dags = [f"dag_{number:03}" for number in range(131)]
    assert [task.map_index for task in api.tasks("weather", "run")] == list(range(131))
    assert list(api.paused_by_dag(["almanac"])) == airflow.dags
    assert api.at_work(["weather"]) == ["weather.score"]


def test_a_list_without_end_is_refused(airflow: Airflow, api: AirflowApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow_api, "LIST_MAX", 130)
    airflow.tasks = ["running"] * 131
    with pytest.raises(UsageError, match="lists 131 task instances, and at most 130 are read"):
        api.tasks("weather", "run")


def test_a_dag_is_unknown_only_where_airflow_says_so(airflow: Airflow, api: AirflowApi) -> None:
    assert api.has_dag("weather")
    assert not api.has_dag("unknown")
    airflow.tokens.clear()
    airflow.password = "another"
    with pytest.raises(UsageError, match="refused to log in"):
        api.has_dag("weather")


@pytest.mark.parametrize("body", [b"<html>a proxy</html>", b"[1]", b"null"])
def test_what_is_not_airflow_is_named(airflow: Airflow, api: AirflowApi, body: bytes) -> None:
    airflow.other = body
    with pytest.raises(Unavailable, match=r"is not Airflow's API .* correct ALMANAC_AIRFLOW_URL"):
        api.run_state("weather", "run")
