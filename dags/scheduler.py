"""Airflow's scheduler, which has imported beforehand what tasks need: `python -m dags.scheduler scheduler …`.

LocalExecutor forks its workers from the scheduler and each task from a worker, so that a task finds imported
what the scheduler has: some ten seconds of processor time a task that uses Feast or Great Expectations. Importing
starts nothing of theirs: no connection, no file, no thread that would be missed after a fork.
"""

from __future__ import annotations

import importlib
import sys

BEFOREHAND = (
    "airflow.sdk.execution_time.task_runner",
    "almanac.scoring",
    "feast.infra.registry.sql",
    "features.identity",
    "features.ingest",
    "features.materialize.run",
    "features.offline.reading",
    "features.offline_store",
    "features.online",
    "features.online_store",
    "features.ranked",
    "features.recent",
    "features.store",
    "great_expectations",
    "jobs.check",
    "jobs.checks.integrity",
    "jobs.expectations",
    "jobs.listing",
    "jobs.materialize",
    "jobs.outcomes",
    "jobs.plan",
    "jobs.publish",
    "jobs.score",
    "jobs.training.labelled",
    "jobs.training.promotion",
    "jobs.training.ranker",
    "jobs.training.train",
    "onnx",
    "onnxruntime",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "serving_cache.postgres",
    "serving_cache.prediction_log",
    "serving_cache.redis",
    "serving_cache.sync",
)
"""What the bodies of our tasks import, and what that imports when it is first used. LightGBM is left to the training
that needs it: the scheduler would start five seconds later."""


def main() -> None:
    """Import, then be Airflow's command line."""
    from jobs.expectations import quieten

    quieten()
    for name in BEFOREHAND:
        importlib.import_module(name)
    from almanac.code.following import code_of
    from jobs.digests import STEPS

    code_of(STEPS)  # of the code that was just imported, which tasks run, whatever the files say by then
    from airflow.__main__ import main as airflow

    sys.exit(airflow())  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
