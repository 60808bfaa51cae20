"""A backfill asks for what is missing within a past time, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from almanac.airflow_api import AirflowApi
from almanac.clock import HOUR
from almanac.errors import UsageError
from almanac.settings import load_settings
from jobs import backfill
from jobs.backfill import TICKS_MAX, Tick, look, run, spans, ticks_between
from jobs.moments import moment_of
from serving_cache.postgres import PostgresStore
from tests.airflows import PASSWORD, serving
from tests.generations import NOON, grid_pipeline, migrated, staged_parts, start_of


def test_ticks_are_those_of_the_schedule_with_both_ends() -> None:
    found = ticks_between("0 * * * *", NOON - 2 * HOUR, NOON, NOON)
    assert found == [NOON - 2 * HOUR, NOON - HOUR, NOON]
    assert found[0].tzinfo is not None
    assert ticks_between("30 6 * * *", NOON - 30 * HOUR, NOON, NOON) == [
        datetime(2026, 2, 28, 6, 30, tzinfo=UTC),
        datetime(2026, 3, 1, 6, 30, tzinfo=UTC),
    ]


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (NOON, NOON + HOUR, "lies in the future"),
        (NOON, NOON - HOUR, "is later than --to"),
        (NOON + timedelta(minutes=1), NOON + timedelta(minutes=2), "no tick of"),
        (NOON - (TICKS_MAX + 1) * HOUR, NOON, "more than 1000 ticks"),
    ],
)
def test_times_that_make_no_sense_are_refused(first: datetime, last: datetime, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ticks_between("0 * * * *", first, last, NOON + timedelta(minutes=30))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0001-01-01T00:00Z", "lies before 1900"),
        ("2026-02-30T00:00Z", "is not a time such as"),
        ("2026-03-01T12:00", "is not a time such as"),
        ("", "is not a time such as"),
    ],
)
def test_what_is_typed_for_a_time_and_is_none_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"--from .*{said}") as refused:
        moment_of("--from", text)
    assert str(refused.value).count("\n") == 0


def test_missing_ticks_make_stretches_that_leave_out_what_is_there() -> None:
    ticks = [Tick(at=NOON + n * HOUR, generation=number, state=None) for n, number in enumerate([None, None, 7, None])]
    assert list(spans(ticks)) == [(NOON, NOON + HOUR), (NOON + 3 * HOUR, NOON + 3 * HOUR)]
    assert list(spans(ticks[2:3])) == []


class Publishing:
    """Stands in for Airflow: each backfill that is asked for publishes the ticks it is about, but the first."""

    def __init__(self, publish: Any) -> None:
        self.asked: list[dict[str, Any]] = []
        self._publish = publish

    def call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        if method == "POST":
            self.asked.append(arguments["json"])
            self._publish(datetime.fromisoformat(arguments["json"]["to_date"]))
        return {"id": 3, "completed_at": "2026-03-01T13:00:00Z"}


def test_what_was_published_is_not_missing_and_what_fails_stays_so(postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    at = load_settings(postgres_url=postgres_url)
    with PostgresStore(postgres_url) as store:

        def publish(moment: datetime) -> None:
            start = start_of(pipeline, f"backfill {moment}", moment, backfill=True)
            attempt = store.begin_generation(pipeline, start, now=moment)
            store.stage(attempt, staged_parts(pipeline, 1.0, moment))
            store.publish(attempt, pipeline, now=moment)

        publish(NOON + 2 * HOUR)
        asked = look(pipeline, at, first=NOON, last=NOON + 2 * HOUR, now=NOON + 3 * HOUR)
        assert asked.missing == (NOON, NOON + HOUR)
        assert (asked.ticks[2].state, asked.rows, asked.seconds) == ("archived", 64, None)
        airflow = Publishing(publish)
        done = list(run(pipeline, at, airflow, asked))  # type: ignore[arg-type]
        assert [tick.at for tick in done] == [NOON + HOUR]
        (request,) = airflow.asked
        assert (request["from_date"], request["to_date"]) == ("2026-03-01T12:00:00Z", "2026-03-01T13:00:00Z")
        again = look(pipeline, at, first=NOON, last=NOON + 2 * HOUR, now=NOON + 3 * HOUR)
        assert again.missing == (NOON,)
        assert store.pointer(pipeline.name) is None
        none = look(replace(pipeline, schedule="0 12 * * *"), at, first=NOON, last=NOON, now=NOON)
        assert none.missing == (NOON,)


def test_a_token_of_20_seconds_ends_while_a_backfill_is_followed(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "POLL_SECONDS", 0.01)
    pipeline = migrated(postgres_url, grid_pipeline())
    with serving() as airflow, PostgresStore(postgres_url) as store:

        def publish() -> None:
            attempt = store.begin_generation(pipeline, start_of(pipeline, "backfill", NOON, backfill=True), now=NOON)
            store.stage(attempt, staged_parts(pipeline, 1.0, NOON))
            store.publish(attempt, pipeline, now=NOON)

        airflow.after_request = lambda count: publish() if count == 8 else None
        at = load_settings(postgres_url=postgres_url, airflow_url=airflow.url, airflow_password=PASSWORD)
        asked = look(pipeline, at, first=NOON, last=NOON, now=NOON + HOUR)
        with AirflowApi(at) as api:
            assert [tick.at for tick in run(pipeline, at, api, asked)] == [NOON]
        assert [body["from_date"] for body in airflow.started] == ["2026-03-01T12:00:00Z"]
        assert airflow.logins > 1
