"""Our online store for Feast's tests, on a real Redis.

It goes by the name `redis`, so that the tests that Feast keeps to its Redis store run with it too. What stands in for
other things does so in this process alone: BigQuery, which helpers of Feast's tests import and do not use here, and
the container of Redis that Feast's tests of versions start, in whose place they find the Redis that is there, and our
store in that of Feast's.
"""

from __future__ import annotations

import os
import shutil
import sys
import types
from unittest.mock import MagicMock

from features.store import redis_connection


class _Absent(types.ModuleType):
    """A module that can be imported from, and nothing else."""

    __path__ = ()

    def __getattr__(self, name):
        return MagicMock(name=f"{self.__name__}.{name}")


def _stand_in_for_bigquery():
    for name in ("google.cloud.bigquery", "google.cloud.exceptions", "google.api_core", "google.api_core.exceptions"):
        if name not in sys.modules:
            sys.modules[name] = _Absent(name)
    import google.cloud

    google.cloud.bigquery = sys.modules["google.cloud.bigquery"]


class RedisContainer:
    """What Feast's tests of versions use of testcontainers."""

    def __init__(self, image):
        pass

    def with_exposed_ports(self, port):
        return self

    def start(self):
        return self

    def get_exposed_port(self, port):
        return port

    def stop(self):
        pass


def _ours_for_feasts():
    import feast.infra.online_stores.redis as feasts

    from features.online_store import AlmanacOnlineStore, AlmanacOnlineStoreConfig

    module = types.ModuleType("testcontainers.redis")
    module.RedisContainer = RedisContainer
    sys.modules["testcontainers.redis"] = module
    feasts.RedisOnlineStore = AlmanacOnlineStore
    feasts.RedisOnlineStoreConfig = lambda **named: AlmanacOnlineStoreConfig(connection_string=CONNECTION)
    which = shutil.which
    shutil.which = lambda name, *more, **named: "/bin/true" if name == "docker" else which(name, *more, **named)


CONNECTION = redis_connection(os.environ["FEAST_TESTS_REDIS"])
_stand_in_for_bigquery()
_ours_for_feasts()

import tests.utils.e2e_test_validation  # noqa: E402, F401  of a local test, before it is none
from tests.universal.feature_repos.universal.data_sources.file import FileDataSourceCreator  # noqa: E402

os.environ["FEAST_IS_LOCAL_TEST"] = "False"  # where it is True the tests of Redis end before they begin

STORE = {"type": "features.online_store.AlmanacOnlineStore", "connection_string": CONNECTION}
AVAILABLE_OFFLINE_STORES = [("local", FileDataSourceCreator)]


class _OneStore(dict):
    """Ours, once; also by the names of stores that some tests are kept to and that need nothing of them."""

    def __contains__(self, name):
        return name in ("redis", "sqlite", "mongodb")

    def get(self, name, default=None):
        return (STORE, None) if name in self else default


AVAILABLE_ONLINE_STORES = _OneStore(redis=(STORE, None))
