"""One DAG per pipeline that declares a challenger: train one, promote it past its gates. Each task calls `jobs`.

A DAG of its own, so that training holds up no generation; workers and batch runs follow the alias once it moves.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, Param, get_current_context, task

from almanac.declarations import pipeline as declared
from almanac.declarations import pipelines
from almanac.pipeline import Pipeline
from dags.retries import tags_of, task_defaults

TASK_TIMEOUT = timedelta(hours=2)


def doc_of(pipeline: Pipeline) -> str:
    """The DAG's page in the UI, in Markdown, from the declaration."""
    gates, training = pipeline.training.challenger, pipeline.training
    if gates is None:
        return ""
    return f"""### {pipeline.name}: a challenger for `{pipeline.model}`

Trains a new version on the last {training.window.days} days, the newest {training.holdout.days} of them held out,
measures it and the model that serves on these, and lets `{pipeline.model}` name it only if both gates pass it:

| gate | a challenger passes |
|---|---|
| against the model that serves | below {gates.champion_max:g} of its error |
| against the better baseline | up to {gates.baseline_max:g} of its error |

What should be great, such as a list's NDCG, is compared the other way round, so that below 1 is always better.
`promote` is **skipped** where a gate refused; its log says why, and so does `almanac models {pipeline.model_name}`. The
version stays registered, named by `challenger`. To take it all the same: trigger with `promote`, or
`almanac models {pipeline.model_name} --alias {pipeline.model_alias}=<version>`, which is also the way back.
"""


def build(pipeline: Pipeline, cron: str | None) -> DAG:
    """The DAG of one declaration."""
    name = pipeline.name
    with DAG(
        dag_id=f"{name}_training",
        description=f"Trains a challenger for {pipeline.model}, and promotes it past its gates.",
        doc_md=doc_of(pipeline),
        schedule=None if cron is None else CronTriggerTimetable(cron, timezone="UTC", run_immediately=timedelta(0)),
        catchup=False,
        max_active_runs=1,
        tags=tags_of(pipeline, "training"),
        default_args=task_defaults(pipeline, TASK_TIMEOUT),
        params={
            "promote": Param(
                False, type="boolean", title="Promote", description="Take the new version whatever its gates say."
            ),
        },
    ) as dag:

        @task(doc_md="Features, LightGBM, ONNX, golden rows, measures; registered with what the gates say of it.")
        def train() -> dict[str, Any]:
            from almanac.clock import utc_now
            from almanac.settings import settings
            from jobs.training.promotion import summary_of
            from jobs.training.train import train as train_model

            return summary_of(train_model(declared(name), settings(), now=utc_now(), progress=print))

        @task(doc_md="Lets the pipeline's alias name the new version if it passed; skipped, with the reasons, if not.")
        def promote(trained: dict[str, Any]) -> str:
            from airflow.sdk.exceptions import AirflowSkipException

            from almanac.settings import settings
            from jobs.training.promotion import promote as promote_version

            overrule = bool(get_current_context()["params"]["promote"])
            found = promote_version(declared(name), settings(), int(trained["version"]), overrule=overrule)
            print(found.told)
            if not found.promoted:
                raise AirflowSkipException(found.told)
            return found.told

        promote(train())  # type: ignore[arg-type]  # what a task returns, once it runs
    return dag


for _pipeline in pipelines().values():
    if _pipeline.training.challenger is not None:
        globals()[f"{_pipeline.name}_training"] = build(_pipeline, _pipeline.training.challenger.schedule)
