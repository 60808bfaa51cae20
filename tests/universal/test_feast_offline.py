"""Feast's universal tests for offline stores pass with ours; run where `FEAST_REPO` names a checkout of Feast."""

from __future__ import annotations

import pytest

from tests.universal.__main__ import OPTIONS, PATHS
from tests.universal.harness import RUN_SECONDS_MAX, checkout, run


@pytest.mark.timeout(RUN_SECONDS_MAX)
@pytest.mark.skipif(checkout() is None, reason="FEAST_REPO names no checkout of Feast's repository")
def test_the_universal_tests_for_offline_stores_pass(postgres_url: str) -> None:
    repository = checkout()
    assert repository is not None
    outcome = run(repository, "offline", PATHS["offline"], postgres=postgres_url, options=OPTIONS["offline"])
    assert len(outcome.passed) > 90, outcome.report()
    assert not outcome.failed, outcome.report()
