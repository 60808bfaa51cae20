"""Tags, when tasks are tried again, and which goes first: what all our DAGs have in common. No DAG itself."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

from almanac.pipeline import Pipeline

RETRIES = 3
RETRY_DELAY = timedelta(seconds=30)
PRIORITY = 1
PRIORITY_OF_PREDICTIONS = 10
"""A free slot goes to them first, whatever else waits."""


def tags_of(pipeline: Pipeline, *kinds: str) -> list[str]:
    """The tags of a DAG of a pipeline; by `dag_tag` whoever needs stillness finds all that may move the pipeline."""
    return ["almanac", pipeline.dag_tag, *kinds, *pipeline.tags]


def task_defaults(
    pipeline: Pipeline,
    timeout: timedelta,
    *,
    retries: int = RETRIES,
    retry_delay: timedelta = RETRY_DELAY,
    unavailable_delay: timedelta = RETRY_DELAY,
    priority: int = PRIORITY,
) -> dict[str, Any]:
    """The `default_args` of a DAG. `Unavailable` passes; any other error of ours is terminal until somebody acts on it.

    Args:
        timeout: that ends a try of a task.
        retry_delay: of a task that was killed, or failed by an error that is not ours.
        unavailable_delay: of a task that missed a server.
        priority: which waiting task gets a slot: the one with the greatest, whatever follows it in its DAG.
    """
    policy = ExceptionRetryPolicy(
        rules=[
            RetryRule(exception="almanac.errors.Unavailable", action=RetryAction.RETRY, retry_delay=unavailable_delay),
            RetryRule(
                exception="almanac.errors.AlmanacError", action=RetryAction.FAIL, reason="see the error's remedy"
            ),
        ]
    )
    return {
        "owner": pipeline.owner,
        "retries": retries,
        "retry_delay": retry_delay,
        "retry_policy": policy,
        "execution_timeout": timeout,
        "priority_weight": priority,
        "weight_rule": "absolute",
    }
