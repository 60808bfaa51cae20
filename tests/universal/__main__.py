"""`make feast-tests`: a configuration's tests of Feast, with real servers, and a table of what they came to."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from almanac.stack.servers import running_postgres, running_redis
from tests.long_runs import SKIPPED
from tests.universal import harness

OFFLINE = [
    "integration/offline_store",
    "integration/materialization/test_universal_materialization.py",
    "integration/registration/test_universal_odfv_feature_inference.py",
    "integration/online_store/test_universal_e2e.py",
]
OF_ONLINE = (
    "universal_online",
    "universal_online_types",
    "universal_e2e",
    "push_features_to_online_store",
    "redis_versioning",
)
ONLINE = [
    *(f"integration/online_store/test_{name}.py" for name in OF_ONLINE),
    "integration/registration/test_universal_odfv_feature_inference.py",
    "integration/materialization/test_universal_materialization.py",
]
# Wants doubles back that it has written to a source of floats; Feast marks it as one for Ray. Our Postgres has doubles.
NOT_NARROW = ("-k", "not preserves_multiple_timestamps or Postgres")
# Two tests of these files start a DynamoDB of their own.
NOT_DYNAMO = ("-k", "not dynamo")
PATHS = {
    "offline": OFFLINE,
    "offline_server": ["integration/offline_store/test_universal_historical_retrieval.py"],
    "feast_duckdb": OFFLINE,
    "online": ONLINE,
}
OPTIONS = {
    "offline": NOT_NARROW,
    "offline_server": NOT_NARROW,
    "feast_duckdb": (),
    "online": NOT_DYNAMO,
}


def main() -> int:
    """Run and print; 0 if nothing failed."""
    parser = argparse.ArgumentParser(prog="make feast-tests", description=__doc__)
    parser.add_argument("store", nargs="?", choices=sorted(PATHS), default="online")
    parser.add_argument("--quick", action="store_true", help="one file of tests; skipped without a checkout")
    parser.add_argument("--path", action="append", help="below the checkout's sdk/python/tests; may be repeated")
    parser.add_argument("options", nargs="*", help="words for pytest, after --")
    asked = parser.parse_args()
    repository = harness.checkout()
    if repository is None:
        print("almanac: set FEAST_REPO to a checkout of Feast's repository", file=sys.stderr)
        return SKIPPED if asked.quick else 2
    with TemporaryDirectory(prefix="almanac-feast-") as scratch:
        folders = [Path(scratch) / name for name in ("postgres", "redis")]
        folders[1].mkdir()
        with running_postgres(folders[0]) as postgres, running_redis(folders[1]) as redis:
            paths = asked.path or PATHS[asked.store][: 1 if asked.quick else None]
            outcome = harness.run(
                repository,
                asked.store,
                paths,
                postgres=postgres,
                redis=redis,
                options=[*OPTIONS[asked.store], *asked.options],
            )
    for name in outcome.passed:
        print(f"passed  {name}")
    print(outcome.report())
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
