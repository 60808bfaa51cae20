"""Feast's Redis online store, with one change: a row replaces only an older one, atomically.

Feast's own store reads the stored event time and then writes, in two trips, so
that a batch writer and a stream writer can both find the old time and the older
row can land last. Here Redis itself compares and writes, in one script a row.
Keys, fields and values are Feast's: every other tool reads what this writes.

When event times are equal, a push wins and a batch row does not, as an overlay
wins over a generation; views without a stream are replaced, so that a corrected
static row arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from feast import FeatureView, RepoConfig, utils
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig, _versioned_fv_name
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]

ROWS_PER_TRIP = 1_000
RETRIES_MAX = 2
RETRY_SECONDS_MAX = 0.2

# KEYS: the entity's hash.
# ARGV: field of the event time, seconds, nanoseconds, 1 if a tie replaces, then field, value, …
# The stored event time is a protobuf Timestamp: varints of field 1 (seconds) and field 2 (nanoseconds).
PUT_IF_NEWER = """
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if stored then
  local parts, at = {0, 0}, 1
  while at <= #stored do
    local field = math.floor(stored:byte(at) / 8)
    local value, scale = 0, 1
    repeat
      at = at + 1
      local byte = stored:byte(at)
      value = value + (byte % 128) * scale
      scale = scale * 128
    until byte < 128
    parts[field] = value
    at = at + 1
  end
  local seconds, nanos = tonumber(ARGV[2]), tonumber(ARGV[3])
  if seconds < parts[1] or (seconds == parts[1] and nanos < parts[2]) then return 0 end
  if seconds == parts[1] and nanos == parts[2] and ARGV[4] ~= '1' then return 0 end
end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
return 1
"""


class NewerWinsOnlineStoreConfig(RedisOnlineStoreConfig):  # type: ignore[misc]
    """Redis options of Feast, and what a tie of event times means."""

    type: str = "features.online_store.NewerWinsOnlineStore"

    ties_replace: bool = False
    """Whether a row of the same event time replaces the stored one in views that have a stream."""


class NewerWinsOnlineStore(RedisOnlineStore):  # type: ignore[misc]
    """`RedisOnlineStore` whose writes are put-if-newer on the event time."""

    def _get_client(self, online_store_config: RedisOnlineStoreConfig) -> Any:
        fresh = self._client is None
        client = super()._get_client(online_store_config)
        if fresh:  # redis-py itself would try for some ten seconds; who calls decides how to wait
            client.set_retry(Retry(ExponentialBackoff(cap=RETRY_SECONDS_MAX, base=RETRY_SECONDS_MAX / 4), RETRIES_MAX))
        return client

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows, each only if its entity's stored row of this view is older."""
        client = self._get_client(config.online_store)
        view = _versioned_fv_name(table, config)
        replace = config.online_store.ties_replace or table.stream_source is None
        put = client.register_script(PUT_IF_NEWER)
        for start in range(0, len(data), ROWS_PER_TRIP):
            part = data[start : start + ROWS_PER_TRIP]
            with client.pipeline(transaction=False) as pipe:
                for entity_key, values, moment, _ in part:
                    key = _redis_key(
                        config.project,
                        entity_key,
                        entity_key_serialization_version=config.entity_key_serialization_version,
                    )
                    put(keys=[key], args=_arguments(view, values, moment, replace), client=pipe)
                    if config.online_store.key_ttl_seconds:
                        pipe.expire(key, config.online_store.key_ttl_seconds)
                pipe.execute()
            if progress:
                progress(len(part))


def _arguments(view: str, values: dict[str, Value], moment: datetime, replace: bool) -> list[Any]:
    time = Timestamp()
    time.FromDatetime(utils.make_tzaware(moment))
    stamp = f"_ts:{view}"
    arguments = [stamp, time.seconds, time.nanos, int(replace), stamp, time.SerializeToString()]
    for name, value in values.items():
        arguments += [_mmh3(f"{view}:{name}"), value.SerializeToString()]
    return arguments
