"""One DAG per declared pipeline that checks its features. No logic: its one task calls one function of `jobs`.

A DAG of its own, so that features are looked at however the batch runs fare, and no check holds up a generation.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, task

from almanac.declarations import pipeline as declared
from almanac.declarations import pipelines
from almanac.pipeline import Pipeline
from dags.retries import tags_of, task_defaults

TASK_TIMEOUT = timedelta(minutes=20)


def doc_of(pipeline: Pipeline) -> str:
    """The DAG's page in the UI, in Markdown, from the declaration."""
    found = pipeline.integrity
    return f"""### {pipeline.name}: its features

Compares the online features of {found.sample:,} entities with the offline ones of the same moments, holds recent rows
to what was learned of the training window, and notes how old each view is. `almanac features {pipeline.name}` shows
what was found; the page it names is written by each check.

**To look by hand**: `almanac skew {pipeline.name} --sample 200`.
"""


def build(pipeline: Pipeline) -> DAG:
    """The DAG of one declaration."""
    name, cron = pipeline.name, pipeline.integrity.schedule
    with DAG(
        dag_id=f"{name}_integrity",
        description=f"Checks the features of {name}: skew, quality, drift, ages.",
        doc_md=doc_of(pipeline),
        schedule=None if cron is None else CronTriggerTimetable(cron, timezone="UTC", run_immediately=timedelta(0)),
        catchup=False,
        max_active_runs=1,
        tags=tags_of(pipeline, "features"),
        default_args=task_defaults(pipeline, TASK_TIMEOUT),
    ) as dag:

        @task(doc_md="Skew, quality, drift and ages of every feature; kept in Postgres, and written as a page.")
        def check() -> dict[str, Any]:
            from almanac.clock import utc_now
            from almanac.settings import settings
            from jobs.checks.integrity import check_features, summary_of

            return summary_of(check_features(declared(name), settings(), now=utc_now()))

        check()
    return dag


for _pipeline in pipelines().values():
    globals()[f"{_pipeline.name}_integrity"] = build(_pipeline)
