"""Our offline store behind Feast's offline server (Arrow Flight, TLS): a server is started for each test."""

from __future__ import annotations

import offline  # our files get our store there

from tests.universal.feature_repos.universal.data_sources.file import RemoteOfflineTlsStoreDataSourceCreator

AVAILABLE_OFFLINE_STORES = [("local", RemoteOfflineTlsStoreDataSourceCreator)]
AVAILABLE_ONLINE_STORES = offline.AVAILABLE_ONLINE_STORES
