"""Packed values in Redis: written by one script over many rows, each only if it is newer, and read by one command.

A row replaces a stored one whose event time is older; at equal event times, one that was created earlier, if that is
known of both. Of what is left it does so if the caller says that ties replace, or if the two are of different
layouts: then columns came or went, and nothing newer may come for long.
A stored value that a newer program has packed is never replaced, nor is anything else of that call.

Where Redis is to forget rows after a while, the time counts from when a row of the entity was last sent, written or
not: a row that stays is kept for as long again. An older row renews a newer one, too. Else the newer one would go, and
the next older one would take its place without a word.

Works on one Redis (also behind Sentinel) and on a Redis Cluster, where rows are grouped by the bucket of their keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha1
from itertools import islice
from typing import Any

from almanac.closing import Closing
from features.packed.codec import CODEC_VERSION, MAGIC, Layout, decode_layout, newer
from features.packed.keys import by_bucket

ROWS_PER_CALL = 1_000
"""Of one script: Redis does nothing else meanwhile, a few milliseconds."""
CALL_BYTES_MAX = 4 * 1024 * 1024
"""Of one script's values, unless one alone has more."""
CALLS_PER_TRIP = 8
READ_KEYS_MAX = 10_000  # of one command
LAYOUTS_KEY = "almanac:feature-layouts"
"""A hash: fingerprint in hexadecimal digits, layout as JSON."""
LAYOUTS_FETCHED_MAX = 64

# KEYS: n keys. ARGV: '1' if a tie replaces, expiry in milliseconds or '0', then n values.
# Gives how many rows were written, or less than 0: a value of version -(this) is there, and nothing was written.
PUT_IF_NEWER = f"""
local stored = redis.call('MGET', unpack(KEYS))
local ties, expiry, put, stays, n = ARGV[1] == '1', ARGV[2], {{}}, {{}}, 0
for i = 1, #KEYS do
  local old, new = stored[i], ARGV[i + 2]
  local take = true
  if old and #old >= 16 then
    local magic, version, dated = string.byte(old, 1, 3)
    if magic == {MAGIC} then
      if version > {CODEC_VERSION} then return -version end
      local low, high = struct.unpack('<I4i4', old, 9)
      local new_low, new_high = struct.unpack('<I4i4', new, 9)
      local even = new_high == high and new_low == low
      if even and dated == 1 and #old >= 24 and string.byte(new, 3) == 1 then
        low, high = struct.unpack('<I4i4', old, 17)
        new_low, new_high = struct.unpack('<I4i4', new, 17)
        even = (new_high == high and new_low == low) or (high == 0 and low == 0) or (new_high == 0 and new_low == 0)
      end
      if even then
        take = ties or string.sub(old, 5, 8) ~= string.sub(new, 5, 8)
      else
        take = new_high > high or (new_high == high and new_low > low)
      end
    end
  end
  if take then
    put[n + 1], put[n + 2] = KEYS[i], new
    n = n + 2
  else
    stays[#stays + 1] = KEYS[i]
  end
end
for _, key in ipairs(stays) do
  if expiry == '0' then redis.call('PERSIST', key) else redis.call('PEXPIRE', key, expiry) end
end
if n == 0 then return 0 end
if expiry == '0' then
  redis.call('MSET', unpack(put))
else
  for i = 1, n, 2 do redis.call('SET', put[i], put[i + 1], 'PX', expiry) end
end
return n / 2
"""
_SHA = sha1(PUT_IF_NEWER.encode(), usedforsecurity=False).hexdigest()


def put_if_newer(
    client: Any,
    layout: Layout,
    keys: Sequence[bytes],
    values: Sequence[bytes],
    *,
    ties_replace: bool,
    expire_seconds: float | None = None,
) -> int:
    """Write rows; also what their layout is, so that it lies wherever they do.

    Args:
        client: a Redis of redis-py, or a RedisCluster.
        keys: of n rows; of two with one key the newer counts, of a tie the last if ties replace, or else the first.
        values: n values of this layout.
        expire_seconds: after which Redis itself forgets a row unless its entity is sent again; None keeps it.

    Returns:
        How many rows were written.

    Raises:
        FeatureError: a row that is there was packed by a newer version. Its call wrote nothing, those before it did.
        redis.RedisError: as the client raises it.
    """
    keys, values = once_each(keys, values, ties_replace)
    options = (b"1" if ties_replace else b"0", _expiry(expire_seconds))
    written = 0
    calls = _calls(client, keys, values, options)
    while batch := list(islice(calls, CALLS_PER_TRIP)):
        written += _written(layout, _trip(client, layout, batch))
    return written


class Writes(Closing):
    """Writes of one view's rows one after the other, of which the last trip's answer is awaited only with the next.

    So the caller packs rows while Redis works on those before; until `end` some may still be on their way. A Redis
    Cluster is written to as by `put_if_newer`.

    Args:
        client, layout, ties_replace, expire_seconds: as of `put_if_newer`.
    """

    def __init__(self, client: Any, layout: Layout, *, ties_replace: bool, expire_seconds: float | None = None) -> None:
        self._client, self._layout, self._ties_replace = client, layout, ties_replace
        self._expire_seconds = expire_seconds
        self._connection: Any = None
        self._sent: list[Call] = []

    def close(self) -> None:
        """Give the connection back, whether all was answered or not."""
        if self._connection is not None:
            if self._sent:  # answers that nobody waits for any more
                self._connection.disconnect()
            self._client.connection_pool.release(self._connection)
            self._connection = None

    def put(self, keys: Sequence[bytes], values: Sequence[bytes]) -> int:
        """Send rows; returns how many of earlier ones were written.

        Raises:
            FeatureError: a row that is there was packed by a newer version; what was sent since may be written.
            redis.RedisError: Redis does not answer; what was sent may or may not be written.
        """
        keys, values = once_each(keys, values, self._ties_replace)
        if is_cluster(self._client):
            return put_if_newer(
                self._client,
                self._layout,
                keys,
                values,
                ties_replace=self._ties_replace,
                expire_seconds=self._expire_seconds,
            )
        options = (b"1" if self._ties_replace else b"0", _expiry(self._expire_seconds))
        calls = _calls(self._client, keys, values, options)
        written = 0
        while batch := list(islice(calls, CALLS_PER_TRIP)):
            connection = self._connection or self._opened()
            field, data = layout_field(self._layout.fingerprint), self._layout.encoded()
            commands = [("HSET", LAYOUTS_KEY, field, data), *[("EVALSHA", _SHA, *call) for call in batch]]
            packed = connection.pack_commands(commands)
            written += self.end()
            connection.send_packed_command(packed, check_health=False)
            self._sent = batch
        return written

    def end(self) -> int:
        """Wait until all that was sent is answered; returns how many rows of it were written. Raises as `put`."""
        from redis.exceptions import NoScriptError, ResponseError

        if not self._sent:
            return 0
        sent = self._sent
        answers = []
        for _ in range(1 + len(sent)):
            try:
                answers.append(self._connection.read_response())
            except ResponseError as error:  # an answer like others: those after it are still to be read
                answers.append(error)
        self._sent = []
        if any(isinstance(answer, NoScriptError) for answer in answers):
            return _written(self._layout, _trip(self._client, self._layout, sent))
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise answer
        return _written(self._layout, [int(answer) for answer in answers[1:]])

    def _opened(self) -> Any:
        self._client.script_load(PUT_IF_NEWER)
        self._connection = self._client.connection_pool.get_connection()
        return self._connection


def _expiry(seconds: float | None) -> bytes:
    """What the script takes: whole milliseconds, 1 at least, or nothing for rows that stay."""
    return b"0" if seconds is None else b"%d" % max(1, round(seconds * 1000))


def _written(layout: Layout, counts: Sequence[int]) -> int:
    for count in counts:
        if count < 0:
            raise newer(layout.view, -count)
    return sum(counts)


def once_each(
    keys: Sequence[bytes], values: Sequence[bytes], ties_replace: bool
) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """The rows with each key once, as if they had been written one after the other."""
    if len(set(keys)) == len(keys):
        return keys, values
    kept: dict[bytes, bytes] = {}
    for key, value in zip(keys, values, strict=True):
        held = kept.get(key)
        if held is not None:
            old, new = age_of(held), age_of(value)
            if old[0] == new[0] and 0 in (old[1], new[1]):
                old, new = old[:1], new[:1]
            if new < old or (new == old and not ties_replace):
                continue
        kept[key] = value
    return list(kept), list(kept.values())


def time_of(value: bytes) -> int:
    """Event time of a value in microseconds since 1970."""
    return int.from_bytes(value[8:16], "little", signed=True)


def age_of(value: bytes) -> tuple[int, ...]:
    """Event time of a value, and when it was created (0: not known), in microseconds since 1970."""
    return time_of(value), int.from_bytes(value[16:24], "little", signed=True) if value[2] == 1 else 0


def fetch(client: Any, keys: Sequence[bytes]) -> list[bytes | None]:
    """The values of keys, in their order; None where there is none.

    Raises:
        redis.RedisError: as the client raises it.
    """
    if is_cluster(client):
        return list(client.mget_nonatomic(keys)) if keys else []
    found: list[bytes | None] = []
    for start in range(0, len(keys), READ_KEYS_MAX):
        found += _mget(client, keys[start : start + READ_KEYS_MAX])
    return found


def _mget(client: Any, keys: Sequence[bytes]) -> list[bytes | None]:
    """One command on one connection, without what redis-py does around it: that takes as long as a hundred values."""
    from redis.exceptions import ConnectionError as RedisConnectionError

    own = client.connection  # of a client that keeps one, which is a thread's own
    connection = own or client.connection_pool.get_connection()
    try:
        connection.send_command("MGET", *keys)
        found: list[bytes | None] = connection.read_response()
    except BaseException as error:
        connection.disconnect()  # half an answer may be on its way
        if not isinstance(error, RedisConnectionError):
            raise
        return list(client.execute_command("MGET", *keys))  # it had died meanwhile; this one tries as it was told to
    finally:
        if own is None:
            client.connection_pool.release(connection)
    return found


def fetch_layouts(client: Any, fingerprints: set[int]) -> dict[int, Layout]:
    """Layouts as they lie beside the values; those that are not there are left out.

    Raises:
        FeatureError: one cannot be read.
        redis.RedisError: as the client raises it.
    """
    wanted = sorted(fingerprints)[:LAYOUTS_FETCHED_MAX]
    held = client.hmget(LAYOUTS_KEY, [layout_field(found) for found in wanted])
    return layouts_of(wanted, held)


def layouts_of(fingerprints: Sequence[int], held: Sequence[bytes | None]) -> dict[int, Layout]:
    """What HMGET of `layout_field`s gave, decoded."""
    return {print_: decode_layout(data) for print_, data in zip(fingerprints, held, strict=True) if data is not None}


def layout_field(fingerprint: int) -> str:
    """Field of `LAYOUTS_KEY`."""
    return f"{fingerprint:08x}"


def is_cluster(client: Any) -> bool:
    """Whether this client speaks to a Redis Cluster."""
    return hasattr(client, "mget_nonatomic")  # without redis-py's module, which takes its time at each call


Call = tuple[Any, ...]


def _calls(client: Any, keys: Sequence[bytes], values: Sequence[bytes], options: tuple[bytes, bytes]) -> Iterator[Call]:
    """Arguments of EVALSHA or EVAL after the script: number of keys, keys, options, values."""
    groups: Sequence[Sequence[int]] = by_bucket(keys) if is_cluster(client) else [range(len(keys))]
    for group in groups:
        for start in range(0, len(group), ROWS_PER_CALL):
            for places in _small(group[start : start + ROWS_PER_CALL], values):
                yield (len(places), *map(keys.__getitem__, places), *options, *map(values.__getitem__, places))


def _small(places: Sequence[int], values: Sequence[bytes]) -> Iterator[Sequence[int]]:
    """The places in halves, and these in halves, until none has too many bytes of values."""
    if len(places) == 1 or sum(map(len, map(values.__getitem__, places))) <= CALL_BYTES_MAX:
        yield places
        return
    half = len(places) // 2
    yield from _small(places[:half], values)
    yield from _small(places[half:], values)


def _trip(client: Any, layout: Layout, calls: Sequence[Call]) -> list[int]:
    """Send calls at once. Where Redis does not know the script all are sent again: that changes nothing twice."""
    from redis.exceptions import NoScriptError

    field, data = layout_field(layout.fingerprint), layout.encoded()
    if is_cluster(client):  # its pipeline takes no EVALSHA
        with client.pipeline() as trip:
            trip.hset(LAYOUTS_KEY, field, data)
            for call in calls:
                trip.execute_command("EVAL", PUT_IF_NEWER, *call)  # its own eval() is barred
            return [int(count) for count in trip.execute()[1:]]
    for last in (False, True):
        with client.pipeline(transaction=False) as trip:
            trip.hset(LAYOUTS_KEY, field, data)
            for call in calls:
                trip.execute_command("EVALSHA", _SHA, *call)
            try:
                return [int(count) for count in trip.execute()[1:]]
            except NoScriptError:
                if last:
                    raise
                client.script_load(PUT_IF_NEWER)
    raise AssertionError
