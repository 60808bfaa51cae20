"""Two DAGs per declared pipeline, its batch and its features. No logic: each task calls one function of `jobs`.

Heavy libraries are imported inside the task bodies, so that parsing this file
costs next to nothing beyond `airflow.sdk` itself.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import (
    DAG,
    Asset,
    CronPartitionTimetable,
    Param,
    PartitionedAssetTimetable,
    get_current_context,
    task,
)

from almanac.clock import PARTITION_KEY_FORMAT, format_time
from almanac.declarations import pipeline as declared
from almanac.declarations import pipelines
from almanac.pipeline import Pipeline
from almanac.quality import has_outcomes
from almanac.rungs import span
from dags.retries import PRIORITY, PRIORITY_OF_PREDICTIONS, tags_of, task_defaults

TASK_TIMEOUT = timedelta(minutes=30)
SHARDS_IN_PARALLEL = 2
FEATURES_NICENESS = 10  # a core, too, is for predictions first
FEATURES_IN_PARALLEL = 1  # Redis is what limits them, and the other slot is for predictions
RETRIES = 5
RETRY_DELAY = timedelta(seconds=3)  # of a task that was killed: what killed it need not be there any more
UNAVAILABLE_DELAY = timedelta(seconds=15)  # of a task that missed a server: together, over a minute for its return


def _defaults(pipeline: Pipeline, priority: int) -> dict[str, Any]:
    delays = {"retry_delay": RETRY_DELAY, "unavailable_delay": UNAVAILABLE_DELAY}
    return task_defaults(pipeline, TASK_TIMEOUT, retries=RETRIES, priority=priority, **delays)


def doc_of(pipeline: Pipeline) -> str:
    """The DAG's page in the UI, in Markdown, from the declaration."""
    outputs = "\n".join(
        f"| `{o.name}` | {o.unit or '–'} | {'–' if o.horizon is None else span(o.horizon)} |" for o in pipeline.outputs
    )
    fresh, usable = span(pipeline.freshness.fresh_for), span(pipeline.freshness.usable_for)
    return f"""### {pipeline.name}: {pipeline.description}

Every run makes one **generation**: the predictions of all {pipeline.partitions.count} partitions as of the run's
partition key (UTC), all published at once or not at all. The DAG `{pipeline.name}_features` brings its features online.

| step | what it does |
|---|---|
| `plan` | brings observations and features up to the cutoff, checks the model, opens the generation |
| `gate_features` | Great Expectations on the inputs; failing partitions are quarantined |
| `score` | one mapped task per shard: Feast features, ONNX Runtime, rows and blocks staged |
| `gate_predictions` | Great Expectations on what was scored |{_outcomes(pipeline)}
| `publish` | moves the pointer in one transaction; Redis follows; the asset `{pipeline.asset_uri}` is emitted |
| `clean_up` | of a failed run: says so; what it scored waits for whoever clears it, two days at most |

| output | unit | horizon |
|---|---|---|
{outputs}

{_ranked(pipeline)}Fresh for {fresh}, usable for {usable}. Model `{pipeline.model}`, features `{pipeline.features}`.

**To run past times**: *Trigger* → *Backfill*, or `almanac backfill {pipeline.name} --from … --to …`: their generations
are archived, never current. **One past time**: trigger with a partition key such as `2026-03-31T06:00Z`, or with a
logical date; a run older than the current generation is archived too. **Now**: trigger with neither.
**To see beforehand** what a run would do: `almanac plan {pipeline.name}`.
**To score everything**, what did not change too: trigger with *Score everything anew*.
**To run after it**: a DAG scheduled on the asset with `PartitionedAssetTimetable` gets the same partition key.
**When a run fails**: the current generation stays. Read the failed task's last line, do what it says, and clear the run
from the failed task on: what is scored is not scored again.
"""


def _outcomes(pipeline: Pipeline) -> str:
    text = "compares what was served before with what has been observed since; `almanac quality` shows it"
    return f"\n| `outcomes` | {text} |" if has_outcomes(pipeline) else ""


def _ranked(pipeline: Pipeline) -> str:
    ranking = pipeline.ranking
    if ranking is None:
        return ""
    return (
        f"Each prediction is a **list**: of {ranking.candidates_max} candidate items the best {ranking.kept} by "
        f"`{pipeline.output_names[0]}` are kept, and {ranking.length} answered. Features of items: "
        f"`{ranking.features}`. In Postgres the view `{pipeline.name}_current` has them, a row for each "
        f"{pipeline.entity}.\n\n"
    )


def build(pipeline: Pipeline) -> DAG:
    """The DAG of one declaration."""
    asset = Asset(name=f"{pipeline.name}_predictions", uri=pipeline.asset_uri, group="almanac")
    features = features_of(pipeline)
    name = pipeline.name

    with DAG(
        dag_id=name,
        description=pipeline.description,
        doc_md=doc_of(pipeline),
        # No start_date, and a timedelta of zero: the first scheduled run is at the next tick, not one at the moment of
        # unpausing, when there may be no model yet. (Airflow 3.3.2 takes False for None: "if the last was recent".)
        schedule=CronPartitionTimetable(
            pipeline.schedule, timezone="UTC", key_format=PARTITION_KEY_FORMAT, run_immediately=timedelta(0)
        ),
        catchup=False,
        max_active_runs=1,
        tags=tags_of(pipeline),
        default_args=_defaults(pipeline, PRIORITY_OF_PREDICTIONS),
        params={
            "coverage_min": Param(
                pipeline.coverage_min,
                type="number",
                exclusiveMinimum=0,
                maximum=1,
                title="Least coverage",
                description="Share of partitions that must be scored for this run to be published (0 to 1).",
            ),
            "anew": Param(
                False,
                type="boolean",
                title="Score everything anew",
                description="Also what did not change since the current generation, and would be carried forward.",
            ),
        },
    ) as dag:

        @task(
            outlets=[features],
            doc_md="Brings features up to the cutoff, checks the model, opens the generation, cuts the shards.",
        )
        def plan() -> dict[str, Any]:
            from almanac.clock import utc_now
            from almanac.settings import settings
            from jobs.plan import plan as plan_run

            context = get_current_context()
            run = context["dag_run"]
            # By hand without a partition key: the logical date that was given, else the moment of triggering.
            cutoff = context.get("partition_date") or run.logical_date or run.run_after
            _emit_partition(name, features, format_time(cutoff))
            made = plan_run(
                declared(name),
                settings(),
                run_key=context["run_id"],
                cutoff=cutoff,
                now=utc_now(),
                backfill=run.run_type == "backfill",
                anew=bool(context["params"]["anew"]),
            )
            return made.to_json()

        @task(doc_md="Great Expectations on every partition's features; returns the shards of those that pass.")
        def gate_features(planned: dict[str, Any]) -> list[list[int]]:
            from almanac.settings import settings
            from jobs.check import gate_features as gate
            from jobs.plan import Plan

            run = Plan.from_json(planned)
            report = gate(_with_params(name), settings(), run)
            # Without any shard `score` would be skipped, and with it all that follows; what follows a setup task may
            # have no other trigger rule. So where nothing is left to score, one task scores nothing.
            return run.shards_without(report.settled) or [[]]

        @task(
            map_index_template="{{ shard_label }}",
            max_active_tis_per_dagrun=SHARDS_IN_PARALLEL,
            doc_md="Scores one shard: features point in time, ONNX Runtime, rows to Postgres, blocks to Redis.",
        )
        def score(partitions: list[int], planned: dict[str, Any]) -> dict[str, Any]:
            from almanac.settings import settings
            from jobs.plan import Plan
            from jobs.score import score_shard

            pipeline = declared(name)
            label = pipeline.shard_label(partitions) if partitions else "nothing changed"
            get_current_context()["shard_label"] = label  # type: ignore[typeddict-unknown-key]
            result = score_shard(pipeline, settings(), Plan.from_json(planned), partitions)
            counts = {"staged": result.staged, "skipped": result.skipped, "rows": result.rows}
            return {**counts, "unchanged": result.unchanged} if pipeline.changed_only else counts

        @task(doc_md="Great Expectations on the staged predictions; partitions that fail are quarantined.")
        def gate_predictions(planned: dict[str, Any]) -> dict[str, Any]:
            from almanac.settings import settings
            from jobs.check import gate_predictions as gate
            from jobs.plan import Plan

            report = gate(_with_params(name), settings(), Plan.from_json(planned))
            return {"rows": report.rows, "expectations": report.expectations, "quarantined": len(report.failing)}

        @task(outlets=[asset], doc_md="Moves the pointer in one Postgres transaction; Redis follows; emits the asset.")
        def publish(planned: dict[str, Any]) -> dict[str, Any]:
            from almanac.clock import utc_now
            from almanac.settings import settings
            from jobs.plan import Plan
            from jobs.publish import publish as publish_generation

            made = publish_generation(_with_params(name), settings(), Plan.from_json(planned), now=utc_now())
            summary = {
                "generation": made.generation,
                "state": str(made.state),
                "epoch": made.epoch,
                "coverage": made.coverage,
                "rows": made.rows,
                "as_of": planned["as_of"],
            }
            get_current_context()["outlet_events"][asset].extra = summary
            _emit_partition(name, asset, planned["cutoff"])
            return summary

        @task(doc_md="Computes the error of what was served, for every predicted moment that has been observed by now.")
        def outcomes(planned: dict[str, Any]) -> int:
            from almanac.settings import settings
            from jobs.outcomes import compute
            from jobs.plan import Plan

            return compute(declared(name), settings(), cutoff=Plan.from_json(planned).moment).outcomes

        @task(doc_md="Says so if the run failed before publishing; what it scored waits for whoever clears the run.")
        def clean_up(planned: dict[str, Any]) -> None:
            from almanac.settings import settings
            from jobs.plan import Plan
            from jobs.publish import clean_up as leave

            if planned:
                leave(declared(name), settings(), Plan.from_json(planned))

        planned: Any = plan()  # what a task returns, once it runs; until then an XComArg
        gated = gate_features(planned)
        scored = score.partial(planned=planned).expand(partitions=gated)
        checked = gate_predictions(planned)
        published = publish(planned)
        cleaned = clean_up(planned).as_teardown(setups=[planned])
        scored >> checked >> published >> cleaned
        if has_outcomes(pipeline):
            outcomes(planned) >> cleaned
    return dag


def _with_params(name: str) -> Pipeline:
    """The declaration with what this run's params override."""
    from dataclasses import replace

    share = get_current_context()["params"]["coverage_min"]
    return replace(declared(name), coverage_min=float(share))


def _emit_partition(name: str, asset: Asset, cutoff: str) -> None:
    """Give an asset's event a partition key where its run has none: whoever is scheduled on it would never run."""
    from almanac.clock import parse_time
    from almanac.schedule import partition_key_of

    context = get_current_context()
    if context["dag_run"].partition_key is None:
        context["outlet_events"][asset].add_partitions(partition_key_of(declared(name).schedule, parse_time(cutoff)))


def features_of(pipeline: Pipeline) -> Asset:
    """The asset that a batch run emits once the offline features are brought up."""
    return Asset(name=f"{pipeline.name}_features", uri=f"almanac://{pipeline.name}/features", group="almanac")


def _services(pipeline: Pipeline) -> str:
    named = [pipeline.features, *([pipeline.ranking.features] if pipeline.ranking is not None else [])]
    return " and ".join(f"`{name}`" for name in named)


def features_doc_of(pipeline: Pipeline) -> str:
    """The page of the features' DAG in the UI, in Markdown, from the declaration."""
    return f"""### {pipeline.name}: features online

Brings what is new of the offline features {_services(pipeline)} into the online store, where the stream and fresh
computations read them. A run begins whenever `plan` of the DAG `{pipeline.name}` has brought the offline features up.

| step | what it does |
|---|---|
| `plan` | looks at definitions, files and watermarks; whatever is wrong with them is said before anything is written |
| `materialize` | a mapped task for up to a million entities: their newest rows are written, each only if it is newer |

One of its tasks is at work at a time, and the tasks of a run of `{pipeline.name}` go first: a slot that becomes free is
for predictions.

**A run that failed or was killed** is gone on with by the next one, or clear the failed task: what is done is not done
again. **Trigger** with `full` to write everything that has not expired, or with times to write the rows of a span.
"""


def build_features(pipeline: Pipeline) -> DAG:
    """The DAG that materializes the features of one declaration."""
    name = pipeline.name

    with DAG(
        dag_id=f"{name}_features",
        description=f"Features of {name}, brought into the online store",
        doc_md=features_doc_of(pipeline),
        schedule=PartitionedAssetTimetable(assets=features_of(pipeline)),
        catchup=False,
        max_active_runs=1,
        tags=tags_of(pipeline, "features"),
        default_args=_defaults(pipeline, PRIORITY),
        params={
            "full": Param(False, type="boolean", title="Everything", description="Write all that has not expired."),
            "since": Param(
                "",
                type="string",
                title="From",
                description="Oldest event time, such as 2026-03-31T06:00Z; empty: what is not online yet.",
            ),
            "until": Param("", type="string", title="To", description="Newest event time; empty: now."),
        },
    ) as dag:

        @task(doc_md="Looks at definitions, files and watermarks; returns what each task has to do.")
        def plan() -> list[list[dict[str, Any]]]:
            from almanac.clock import utc_now
            from almanac.settings import settings
            from jobs.materialize import asked_times, plan_features

            params = get_current_context()["params"]
            since, until = asked_times(params["since"], params["until"], utc_now())
            return plan_features(declared(name), settings(), since=since, until=until, full=params["full"])

        @task(
            map_index_template="{{ shard_label }}",
            max_active_tis_per_dagrun=FEATURES_IN_PARALLEL,
            doc_md="Reads the newest rows of its shards, and writes each that is newer than what is online.",
        )
        def materialize(shards: list[dict[str, Any]]) -> dict[str, int]:
            import os

            from almanac.settings import settings
            from jobs.materialize import materialize_shards, task_label

            os.nice(FEATURES_NICENESS)
            get_current_context()["shard_label"] = task_label(declared(name), shards)  # type: ignore[typeddict-unknown-key]
            return materialize_shards(declared(name), settings(), shards)

        materialize.expand(shards=plan())
    return dag


for _pipeline in pipelines().values():
    globals()[_pipeline.name] = build(_pipeline)
    globals()[f"{_pipeline.name}_features"] = build_features(_pipeline)
