"""The peer of `benchmarks/orchestration.py`: a DAG that maps one task over every partition, and does nothing in it."""

from __future__ import annotations

import os

from airflow.sdk import DAG, task

with DAG(dag_id="one_task_a_partition", schedule=None, catchup=False, is_paused_upon_creation=False):

    @task
    def plan() -> list[int]:
        """The partitions."""
        return list(range(int(os.environ["BENCH_PARTITIONS"])))

    @task
    def score(partition: int) -> None:
        """Nothing: what is measured is what Airflow takes to call it."""

    score.expand(partition=plan())
