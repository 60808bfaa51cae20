"""Every metric of every process, in one place; `serve` shows them at `/metrics`.

Names begin with `almanac_` and end in `_total`, `_seconds`, `_bytes` or a plain
noun (a gauge). Every metric has the label `pipeline` where it can; none has an
entity or a pipeline's partition as a label, for their number has no bound. A
process shows only what it counts: a metric without a sample is a line of help.

The alert rules and the dashboard under `deploy/` may name nothing else; a test
compares them with this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics

from almanac.metrics_server import Health, MetricsServer, Shown, fine, listen

__all__ = ["REGISTRY", "MetricsServer", "serve"]

# They would be a further series for each counter and histogram, which nothing here reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds: requests and computations that somebody waits for."""
STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds: steps of a stream batch or of a synchronisation."""
STAGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""Seconds: stages of a batch run."""
AGES = (60.0, 300.0, 900.0, 1800.0, 3600.0, 5400.0, 7200.0, 10800.0, 21600.0, 43200.0, 86400.0, 172800.0)
"""Seconds: ages of what is served."""

# Lookup

LOOKUP_REQUESTS = Counter(
    "almanac_lookup_requests_total",
    "Predictions asked for, one for each entity of a request; rung is what answered, or refused.",
    ("pipeline", "interface", "rung", "verdict"),
)
LOOKUP_REQUEST_SECONDS = Histogram(
    "almanac_lookup_request_seconds",
    "Time to answer a request, however many entities it asks for.",
    ("pipeline", "interface"),
    buckets=FAST,
)
LOOKUP_AGE_SERVED_SECONDS = Histogram(
    "almanac_lookup_age_served_seconds",
    "Age of the predictions that were answered with.",
    ("pipeline", "source"),
    buckets=AGES,
)
LOOKUP_ERRORS = Counter(
    "almanac_lookup_errors_total",
    "Requests that ended in a problem, by HTTP status.",
    ("pipeline", "interface", "status"),
)
LOOKUP_PLACE_FAILURES = Counter(
    "almanac_lookup_place_failures_total",
    "Times that a place (redis, postgres) did not answer in time or with what can be read.",
    ("pipeline", "place"),
)
LOOKUP_PLACE_BUSY = Counter(
    "almanac_lookup_place_busy_total",
    "Times that a place (redis, postgres) was not read because the lookup process had too much to do.",
    ("pipeline", "place"),
)
FRESH_COMPUTATIONS = Counter(
    "almanac_fresh_computations_total",
    "Fresh computations by outcome: answered, coalesced, timeout, busy, refused, failed; one for each entity.",
    ("pipeline", "outcome"),
)
FRESH_SECONDS = Histogram(
    "almanac_fresh_seconds",
    "Time of fresh computations, by outcome.",
    ("pipeline", "outcome"),
    buckets=FAST,
)
FRESH_IN_FLIGHT = Gauge(
    "almanac_fresh_in_flight",
    "Fresh computations at work now.",
    ("pipeline",),
)
FRESH_WRITES = Counter(
    "almanac_fresh_writes_total",
    "Fresh predictions written back as overlays, by outcome: newer, not_newer, failed.",
    ("pipeline", "outcome"),
)

# Stream

STREAM_EVENTS = Counter(
    "almanac_stream_events_total", "Events whose batch was committed, whatever became of them.", ("pipeline",)
)
STREAM_PREDICTIONS = Counter(
    "almanac_stream_predictions_total", "Predictions written to the predictions topic and committed.", ("pipeline",)
)
STREAM_MODELS = Gauge(
    "almanac_stream_models",
    "Models that each event is scored with: 2 while the alias names another version than the generation that answers.",
    ("pipeline",),
)
STREAM_CORRECTS = Gauge(
    "almanac_stream_corrects",
    "1 while events are scored with the model of the generation that answers, so that corrections reach readers.",
    ("pipeline",),
)
STREAM_POINTER_KNOWN = Gauge(
    "almanac_stream_pointer_known",
    "1 while Postgres or Redis says which generation answers; 0 while the last known one goes on to count.",
    ("pipeline",),
)
STREAM_UNSCORED = Counter(
    "almanac_stream_unscored_total",
    "Predictions that one of an event's models did not make, though another did.",
    ("pipeline",),
)
STREAM_DEAD_LETTERS = Counter(
    "almanac_stream_dead_letters_total",
    "Events that could not be handled, written to the dead-letter topic and committed, by reason.",
    ("pipeline", "reason"),
)
STREAM_DUPLICATES = Counter("almanac_stream_duplicates_total", "Events dropped as duplicates.", ("pipeline",))
STREAM_UNPROVED = Counter("almanac_stream_unproved_total", "Events whose claimed place nobody proved.", ("pipeline",))
STREAM_LATE = Counter(
    "almanac_stream_late_total",
    "Events older than their entity's features, or further ahead than a history takes in: archived, not predicted.",
    ("pipeline",),
)
STREAM_BATCH_SECONDS = Histogram(
    "almanac_stream_batch_seconds",
    "Time of a whole worker's batch, from its records to its commit.",
    ("pipeline",),
    buckets=STEPS,
)
STREAM_STEP_SECONDS = Histogram(
    "almanac_stream_step_seconds",
    "Time of one step of a worker's batch: parse, read_features, score, write, commit.",
    ("pipeline", "step"),
    buckets=STEPS,
)
STREAM_LAG = Gauge(
    "almanac_stream_lag",
    "Records that a consumer group has not committed yet.",
    ("pipeline", "group", "kafka_partition"),
)
STREAM_PAUSES = Counter(
    "almanac_stream_pauses_total", "Times that a worker or sink began to wait for something.", ("pipeline", "part")
)
STREAM_PAUSED = Gauge(
    "almanac_stream_paused", "1 while a worker or sink waits for something that is down.", ("pipeline", "part")
)
STREAM_HINDERED = Gauge(
    "almanac_stream_hindered",
    "Things that keep a worker or sink from part of its work while it goes on, such as partitions without a leader.",
    ("pipeline", "part"),
)
STREAM_FORWARDED = Counter(
    "almanac_stream_forwarded_total",
    "Events written again to the home partition of their entity, where its history is.",
    ("pipeline",),
)
STREAM_TOPICS_LOST = Counter(
    "almanac_stream_topics_lost_total",
    "Times that a topic was found to be deleted, or deleted and made again.",
    ("pipeline", "topic"),
)
STREAM_TOPIC_DIFFERENCES = Gauge(
    "almanac_stream_topic_differences",
    "In how many ways a topic is worse than it is declared: compacted, shorter retention, smaller records, fewer "
    "partitions.",
    ("pipeline", "topic"),
)
STREAM_RECORDS_LOST = Counter(
    "almanac_stream_records_lost_total",
    "Records that were deleted before a worker or sink had read them, at most.",
    ("pipeline", "part"),
)
SINK_ROWS = Counter(
    "almanac_sink_rows_total",
    "Records that a sink applied; outcome is newer, not_newer or foreign.",
    ("pipeline", "sink", "outcome"),
)
SINK_SECONDS = Histogram(
    "almanac_sink_seconds",
    "Time in which a sink applied what it had gathered.",
    ("pipeline", "sink"),
    buckets=STEPS,
)
ARCHIVE_ROWS = Counter(
    "almanac_archive_rows_total", "Events that the archive sink brought to the offline source.", ("pipeline", "outcome")
)
ARCHIVE_FILES = Counter("almanac_archive_files_total", "Parquet files that the archive sink finished.", ("pipeline",))

# Reconciler

RECONCILER_SYNCS = Counter(
    "almanac_reconciler_syncs_total",
    "Looks at a pipeline by outcome: in_step, repaired, unpublished, unavailable, refused.",
    ("pipeline", "outcome"),
)
RECONCILER_SECONDS = Histogram(
    "almanac_reconciler_seconds", "Time of one look at a pipeline.", ("pipeline",), buckets=STEPS
)
RECONCILER_IN_STEP = Gauge("almanac_reconciler_in_step", "1 while Redis is in step with Postgres.", ("pipeline",))
RECONCILER_LAST_IN_STEP = Gauge(
    "almanac_reconciler_last_in_step_timestamp_seconds",
    "When Redis was last found in step with Postgres, as a Unix time.",
    ("pipeline",),
)
RECONCILER_OVERLAYS_RESTORED = Counter(
    "almanac_reconciler_overlays_restored_total",
    "Entities whose overlays Redis had lost, by eviction or deletion, and that were brought back.",
    ("pipeline",),
)
REDIS_MAY_EVICT = Gauge(
    "almanac_redis_may_evict", "1 while Redis's maxmemory-policy is another than noeviction.", ("process",)
)
REDIS_EVICTED_KEYS = Gauge(
    "almanac_redis_evicted_keys", "Keys that Redis has evicted since it was started.", ("process",)
)

# Monitor: what Postgres says of the batch side

GENERATION_AGE = Gauge(
    "almanac_generation_age_seconds", "Age of the current generation: now minus its as_of.", ("pipeline",)
)
FRESHNESS = Gauge(
    "almanac_freshness_seconds",
    "The declared freshness: limit is fresh_for or usable_for.",
    ("pipeline", "limit"),
)
GENERATION_NUMBER = Gauge("almanac_generation_current", "Number of the current generation.", ("pipeline",))
GENERATION_EPOCH = Gauge("almanac_generation_epoch", "Epoch of the pipeline's pointer.", ("pipeline",))
GENERATION_COVERAGE = Gauge(
    "almanac_generation_coverage", "Share of partitions that the current generation's own run covered.", ("pipeline",)
)
GENERATION_ROWS = Gauge("almanac_generation_rows", "Predictions in the current generation.", ("pipeline",))
GENERATION_UNUSUAL = Gauge(
    "almanac_generation_unusual",
    "1 if the current generation differs much from the one before.",
    ("pipeline",),
)
GENERATIONS = Gauge("almanac_generations", "Generations by state.", ("pipeline", "state"))
GENERATION_LATE = Gauge(
    "almanac_generation_late",
    "1 when the generation that the schedule asks for has not become current within its allowance.",
    ("pipeline",),
)
GENERATION_LATE_SECONDS = Gauge(
    "almanac_generation_late_seconds",
    "Time since the expected generation's allowance ended; 0 when none is late.",
    ("pipeline",),
)
PARTITIONS = Gauge(
    "almanac_partitions", "Partitions of the newest run by state: planned, staged, quarantined.", ("pipeline", "state")
)
ROWS_SCORED = Counter(
    "almanac_rows_scored_total", "Predictions that batch runs scored since the monitor started.", ("pipeline",)
)
ROWS_UNCHANGED = Counter(
    "almanac_rows_unchanged_total",
    "Predictions that batch runs took over since the monitor started: not scored, their inputs were as before.",
    ("pipeline",),
)
ROWS_MATERIALIZED = Counter(
    "almanac_rows_materialized_total",
    "Feature rows that materializations handed to the online store since the monitor started.",
    ("pipeline",),
)
FEATURES_AGE = Gauge(
    "almanac_features_age_seconds",
    "Time since the watermark of online features: of all views and partitions the one that is furthest behind.",
    ("pipeline",),
)
FEATURE_SKEW = Gauge(
    "almanac_feature_skew",
    "Share of sampled online values that were not the offline ones of the same moment, at the newest check.",
    ("pipeline", "view", "feature"),
)
FEATURE_GAP = Gauge(
    "almanac_feature_gap",
    "Difference between sampled online values and the offline ones of the same moment: kind is greatest or mean.",
    ("pipeline", "view", "feature", "kind"),
)
FEATURE_NULLS = Gauge(
    "almanac_feature_null_share", "Share of nulls among a feature's recent rows.", ("pipeline", "view", "feature")
)
FEATURE_DRIFT = Gauge(
    "almanac_feature_drift",
    "Population stability index of a feature's recent rows beside its training window.",
    ("pipeline", "view", "feature"),
)
FEATURE_DRIFT_LIMIT = Gauge(
    "almanac_feature_drift_limit",
    "The same that the training window's own parts say is usual.",
    ("pipeline", "view", "feature"),
)
FEATURE_SKEW_LIMIT = Gauge(
    "almanac_feature_skew_limit", "The declared share of unequal values above which somebody is told.", ("pipeline",)
)
FEATURE_REFUSED = Gauge(
    "almanac_feature_expectations_refused",
    "Learned expectations that a view's recent rows did not meet.",
    ("pipeline", "view"),
)
FEATURE_AGE = Gauge(
    "almanac_feature_view_age_seconds",
    "Age of a view's newest row, from either store, as the newest check knew it.",
    ("pipeline", "view"),
)
FEATURE_TTL = Gauge(
    "almanac_feature_view_ttl_seconds",
    "For how long a row of a view may be used, by its definition.",
    ("pipeline", "view"),
)
FEATURE_ENTITIES = Gauge(
    "almanac_feature_entities",
    "Sampled entities by what is the matter with their online row: missing, expired, in_flight.",
    ("pipeline", "view", "state"),
)
FEATURES_CHECKED = Gauge(
    "almanac_features_checked_timestamp_seconds", "When features were last checked, as a Unix time.", ("pipeline",)
)
STAGE_SECONDS = Histogram(
    "almanac_stage_seconds",
    "Time of each stage of a batch run, a shard at a time, since the monitor started.",
    ("pipeline", "stage", "outcome"),
    buckets=STAGES,
)
RUN_STAGE_SECONDS = Gauge(
    "almanac_run_stage_seconds",
    "Time that the newest run spent in each stage, its shards and attempts added up.",
    ("pipeline", "stage"),
)
PREDICTION_ERROR = Gauge(
    "almanac_prediction_error",
    "Mean absolute error of what was served, in the output's unit, over the predicted moments of the last day.",
    ("pipeline", "output", "source"),
)
PREDICTION_PAIRED_ERROR = Gauge(
    "almanac_prediction_paired_error",
    "The same, over those that have an older answer about the same moment beside them.",
    ("pipeline", "output", "source"),
)
PREDICTION_REPLACED_ERROR = Gauge(
    "almanac_prediction_replaced_error",
    "Mean absolute error of these older answers: what would have been served without the source.",
    ("pipeline", "output", "source"),
)
PREDICTION_OUTCOMES = Gauge(
    "almanac_prediction_outcomes",
    "Predictions that were compared with what was observed, over the predicted moments of the last day.",
    ("pipeline", "output", "source"),
)
MONITOR_LAST_READ = Gauge(
    "almanac_monitor_last_read_timestamp_seconds",
    "When the monitor last read a pipeline's state, as a Unix time; place is where from.",
    ("pipeline", "place"),
)
ALERTS_SENT = Counter(
    "almanac_alerts_sent_total", "Alerts sent to the webhook by outcome: sent, failed.", ("pipeline", "outcome")
)

# Every process with a `/metrics` of its own

READY = Gauge("almanac_ready", "1 while the process does what it is for.", ("process",))


def serve(
    port: int | None,
    *,
    process: str,
    host: str = "127.0.0.1",
    why_not_ready: Health = fine,
    why_not_live: Health = fine,
    pages: Mapping[str, Callable[[], bytes]] | None = None,
) -> MetricsServer | None:
    """Open `/metrics`, `/livez` and `/readyz` beside the process's work; returns at once.

    Args:
        port: None for no server: then nothing happens; 0 for any free one.
        process, why_not_ready, why_not_live, pages: as in `Shown`.

    Raises:
        StackError: the port is in use.
        UsageError: the address is not this machine's, or the port does not exist or needs a privilege.
    """
    if port is None:
        return None
    shown = Shown(
        process=process,
        note_ready=lambda ready: READY.labels(process).set(1 if ready else 0),
        why_not_ready=why_not_ready,
        why_not_live=why_not_live,
        pages=pages or {},
    )
    return listen(host, port, shown)
