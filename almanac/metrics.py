"""Every metric of every process, in one place, and the small server that shows them at `/metrics`.

Names begin with `almanac_` and end in `_total`, `_seconds`, `_bytes` or a plain
noun (a gauge). Every metric has the label `pipeline` where it can; none has an
entity or a pipeline's partition as a label, for their number has no bound. A
process shows only what it counts: a metric without a sample is a line of help.

The alert rules and the dashboard under `deploy/` may name nothing else; a test
compares them with this module.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from almanac.errors import StackError, UsageError

# They would be a further series for each counter and histogram, which nothing here reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

REQUESTS_AT_ONCE_MAX = 8
REQUEST_SECONDS_MAX = 5.0
BACKLOG = 16

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
STREAM_DEAD_LETTERS = Counter(
    "almanac_stream_dead_letters_total",
    "Events that could not be handled, written to the dead-letter topic and committed, by reason.",
    ("pipeline", "reason"),
)
STREAM_DUPLICATES = Counter("almanac_stream_duplicates_total", "Events dropped as duplicates.", ("pipeline",))
STREAM_LATE = Counter(
    "almanac_stream_late_total",
    "Events older than their entity's features: archived, and not predicted.",
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
    "almanac_rows_scored_total", "Predictions that batch runs staged since the monitor started.", ("pipeline",)
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


Health = Callable[[], str | None]
"""Why a process is not ready, or not live, in one line; None when it is. Must answer at once, from any thread."""


def fine() -> None:
    """The health of a process that has nothing to wait for."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a process shows besides its metrics.

    Args:
        process: the process's name, such as `stream`.
        why_not_ready: why it cannot do its work now, for a store that is away, say: waiting mends it.
        why_not_live: why it will never work again without a restart: a thread that hangs.
        pages: JSON of further paths.
    """

    process: str
    why_not_ready: Health = fine
    why_not_live: Health = fine
    pages: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)


class MetricsServer(ThreadingHTTPServer):
    """Serves `/metrics`, `/livez`, `/readyz` and pages from threads of its own until `close`.

    Args:
        host, port: where to listen; port 0 is any free one.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = BACKLOG

    def __init__(self, host: str, port: int, shown: Shown) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._room = threading.BoundedSemaphore(REQUESTS_AT_ONCE_MAX)
        self.shown = shown
        super().__init__((host, port), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self.shutdown()
        self.server_close()

    def why_not_ready(self) -> str | None:
        """Ask the process, and note the answer in `almanac_ready`."""
        reason = self.shown.why_not_live() or self.shown.why_not_ready()
        READY.labels(self.shown.process).set(0 if reason else 1)
        return reason

    def server_bind(self) -> None:
        """Bind without asking a name server for this machine's name, as the base class does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a request, if there is room for one more."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        logging.getLogger(__name__).debug("a request for metrics failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_SECONDS_MAX
    server: MetricsServer

    def do_GET(self) -> None:
        """Answer one of a few paths."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self.server.why_not_ready()
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, encode(REGISTRY), content_type)
        elif path == "/livez":
            self._health(self.server.shown.why_not_live(), "live")
        elif path == "/readyz":
            self._health(self.server.why_not_ready(), "ready")
        elif path in self.server.shown.pages:
            self._answer(200, self.server.shown.pages[path](), "application/json")
        else:
            paths = ", ".join(("/metrics", "/livez", "/readyz", *self.server.shown.pages))
            self._answer(404, f"there are {paths}\n".encode())

    def _health(self, reason: str | None, fine: str) -> None:
        self._answer(503 if reason else 200, f"{reason or fine}\n".encode())

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A line a scrape would drown the others."""


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
    shown = Shown(process=process, why_not_ready=why_not_ready, why_not_live=why_not_live, pages=pages or {})
    try:
        return MetricsServer(host, port, shown)
    except OverflowError:
        raise UsageError(f"port {port} does not exist: set ALMANAC_METRICS_PORT to 1 to 65535") from None
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno is None or error.strerror is None:
            raise UsageError(f"cannot listen on {host} ({error}): correct ALMANAC_METRICS_HOST") from None
        if error.errno == errno.EADDRINUSE:
            raise StackError(
                f"port {port} on {host} is in use: stop what listens there, or set ALMANAC_METRICS_PORT to another"
            ) from None
        raise UsageError(
            f"cannot listen on {host} port {port} ({error.strerror}): "
            "correct ALMANAC_METRICS_HOST and ALMANAC_METRICS_PORT"
        ) from None
