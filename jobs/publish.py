"""Step 5: make the generation current, or reject it; Redis follows Postgres.

The order is the same here, in the docs and in the store:

1. look whether the model is still the one that was planned, and take the fencing
   token, so that an older attempt can change nothing any more;
2. read the rows back; then in one Postgres transaction: check the token and the
   coverage, carry forward what is quarantined, ask the hook, attach the rows, move
   the pointer, add one to the epoch;
3. let Redis follow; when it is down it stays pending and the reconciler does it;
4. drop what no generation refers to any more;
5. keep what is served now in the prediction log, for outcomes.
"""

from __future__ import annotations

import logging
from datetime import datetime

from almanac.clock import utc_now
from almanac.errors import AlmanacError, BlockError, ModelError, Unavailable
from almanac.pipeline import Pipeline
from almanac.quality import has_outcomes
from almanac.registry import Registry
from almanac.settings import Settings
from jobs.inputs import forget
from jobs.plan import Plan
from jobs.stages import Stage, stage
from serving_cache.records import GenerationRecord, Publication, State

log = logging.getLogger(__name__)

UNFINISHED = "its run failed before publishing; mend the cause and clear it in Airflow: it scores only the rest"


def publish(pipeline: Pipeline, settings: Settings, plan: Plan, *, now: datetime) -> Publication:
    """Publish a staged generation.

    Raises:
        Superseded: a later attempt has taken over.
        GateError: coverage is below what the pipeline declares, the hook says no (the generation is rejected), or a
            rollback holds.
        ModelError: the model's file is no longer the one that the predictions were made with; nothing changed.
        BlockError: what lies in the store is not what was scored; the generation is rejected.
    """
    with stage("publish", pipeline.name, settings, generation=plan.generation) as record:
        publication = _publish(pipeline, settings, plan, record, now=now)
        record.rows = publication.rows
        record.partitions = pipeline.partitions.count
    return publication


def _publish(pipeline: Pipeline, settings: Settings, plan: Plan, record: Stage, *, now: datetime) -> Publication:
    from serving_cache.postgres import PostgresStore
    from serving_cache.redis import RedisStore
    from serving_cache.sync import sync_redis

    with PostgresStore(settings.need("postgres_url")) as store:
        with record.step("postgres"):
            _need_same_model(settings, store.generation(plan.pipeline, plan.generation))
            attempt = store.take_over(plan.pipeline, plan.generation)
            try:
                publication = store.publish(attempt, pipeline, now=now)
            except BlockError as error:
                store.reject(attempt, str(error))  # or whoever goes on with this run would meet the same rows
                raise
        log.info(
            "published pipeline=%s generation=%d state=%s epoch=%s coverage=%.3f",
            pipeline.name,
            publication.generation,
            publication.state,
            publication.epoch,
            publication.coverage,
        )
        if publication.alert:
            log.warning(
                "unusual pipeline=%s generation=%d: %s", pipeline.name, publication.generation, publication.alert
            )
        if settings.redis_url:
            try:
                with record.step("redis"), RedisStore(settings.redis_url) as cache:
                    sync_redis(pipeline, store, cache)
            except Unavailable as error:
                log.warning("redis stays pending at generation %d: %s", publication.generation, error)
        with record.step("retention"):
            store.retire(pipeline, now=now)
    with record.step("prediction_log"):
        _log_predictions(pipeline, settings, publication)
    return publication


def _need_same_model(settings: Settings, planned: GenerationRecord | None) -> None:
    """Refuse a model whose file is another one by now; the alias may have moved on, a version never changes.

    Raises:
        ModelError: it was changed between plan and publish, or removed.
    """
    if planned is None or planned.state is not State.STAGED:
        return
    name, _, number = planned.model.rpartition("-v")
    try:
        version = Registry(settings.models_dir).resolve(f"{name}@{number}")
        version.verify()
        changed = version.hash != planned.model_hash
    except AlmanacError as error:
        raise ModelError(
            f"model {planned.model} cannot be found as generation {planned.generation} of {planned.pipeline} was "
            f"planned with it ({error}): the current generation stays; run again with a registered model"
        ) from None
    if changed:
        raise ModelError(
            f"model {planned.model} changed since generation {planned.generation} of {planned.pipeline} was planned: "
            "the current generation stays; register the model as a version of its own, and run again"
        )


def _log_predictions(pipeline: Pipeline, settings: Settings, publication: Publication) -> None:
    """Keep what is served now for outcomes; what fails here fails no publish, for readers have their answers."""
    from serving_cache.prediction_log import PredictionLog

    if publication.state is not State.CURRENT or not has_outcomes(pipeline):
        return
    try:
        with PredictionLog(settings.need("postgres_url")) as kept:
            kept.log_generation(pipeline, publication.generation)
    except AlmanacError as error:
        log.warning(
            "not logged for outcomes pipeline=%s generation=%d: %s", pipeline.name, publication.generation, error
        )


def clean_up(pipeline: Pipeline, settings: Settings, plan: Plan, *, now: datetime | None = None) -> bool:
    """Forget a run's features; say of a generation that it left staged why it is, and drop what nobody goes on with.

    What is staged stays: the run that is cleared, or tried again, scores only the rest.

    Args:
        now: default: the clock's.

    Returns:
        Whether the generation is unfinished.
    """
    from serving_cache.postgres import PostgresStore

    forget(settings, plan)
    with (
        stage("clean_up", pipeline.name, settings, generation=plan.generation),
        PostgresStore(settings.need("postgres_url")) as store,
    ):
        unfinished = store.leave(plan.pipeline, plan.generation, UNFINISHED)
        if unfinished:
            log.warning("unfinished pipeline=%s generation=%d: %s", plan.pipeline, plan.generation, UNFINISHED)
            store.retire(pipeline, now=now or utc_now())
    return unfinished
