"""What the service counts of its own work, with label children resolved once: a lookup adds a few increments.

Imported once the process listens, for the metrics library takes a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from almanac import metrics
from almanac.ladder import Settled
from almanac.rungs import Answer

REFUSED = "refused"
NO_VERDICT = "none"

_requests = cache(metrics.LOOKUP_REQUESTS.labels)
_seconds = cache(metrics.LOOKUP_REQUEST_SECONDS.labels)
_ages = cache(metrics.LOOKUP_AGE_SERVED_SECONDS.labels)
_errors = cache(metrics.LOOKUP_ERRORS.labels)
_place_failures = cache(metrics.LOOKUP_PLACE_FAILURES.labels)
_place_busy = cache(metrics.LOOKUP_PLACE_BUSY.labels)


class Counts:
    """Counters of requests. Every label's values are bounded: a pipeline is always a declared one."""

    def decided(self, pipeline: str, interface: str, decisions: Iterable[Settled]) -> None:
        """Count what each entity of a request got."""
        found: dict[tuple[int, str], int] = {}
        ages: dict[str, list[float]] = {}
        refused = 0
        for decision in decisions:
            if isinstance(decision, Answer):
                # `_value_` is what `value` returns, without the call: this runs for every entity of a request.
                key = (decision.rung._value_, decision.verdict._value_)
                found[key] = found.get(key, 0) + 1
                if decision.age is not None:
                    ages.setdefault(decision.candidate.source._value_, []).append(decision.age.total_seconds())
            else:
                refused += 1
        for (rung, verdict), count in found.items():
            _requests(pipeline, interface, str(rung), verdict).inc(count)
        if refused:
            _requests(pipeline, interface, REFUSED, NO_VERDICT).inc(refused)
        for source, seconds in ages.items():
            observe = _ages(pipeline, source).observe
            for age in seconds:
                observe(age)

    def took(self, pipeline: str, interface: str, seconds: float) -> None:
        """Count the time of one request."""
        _seconds(pipeline, interface).observe(seconds)

    def problem(self, pipeline: str, interface: str, status: int) -> None:
        """Count a request that ended in a problem."""
        _errors(pipeline, interface, str(status)).inc()

    def place_failed(self, pipeline: str, place: str) -> None:
        """Count a place that did not answer, or not with what it should hold."""
        _place_failures(pipeline, place).inc()

    def place_busy(self, pipeline: str, place: str) -> None:
        """Count a place that was not read because this process had too much to do."""
        _place_busy(pipeline, place).inc()

    def exposition(self, accept: str, ready: bool) -> tuple[bytes, str]:
        """Every metric of this process, and the content type that the caller accepts."""
        metrics.READY.labels("lookup").set(1 if ready else 0)
        encode: Any
        encode, content_type = choose_encoder(accept)
        return encode(REGISTRY), content_type
