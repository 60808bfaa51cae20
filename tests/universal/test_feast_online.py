"""Feast's universal tests for online stores pass with ours; run where `FEAST_REPO` names a checkout of Feast."""

from __future__ import annotations

import pytest

from tests.universal.__main__ import NOT_DYNAMO, PATHS
from tests.universal.harness import RUN_SECONDS_MAX, checkout, run


@pytest.mark.timeout(RUN_SECONDS_MAX)
@pytest.mark.skipif(checkout() is None, reason="FEAST_REPO names no checkout of Feast's repository")
def test_the_universal_tests_for_online_stores_pass(redis_url: str) -> None:
    repository = checkout()
    assert repository is not None
    outcome = run(repository, "online", PATHS["online"], redis=redis_url, options=NOT_DYNAMO)
    assert len(outcome.passed) > 18, outcome.report()
    assert not outcome.failed, outcome.report()
