"""Keys of packed values in Redis: `f{<bucket>}<view><entity>`, made for many entities at once.

    f{a7}            the bucket of the entity, two hexadecimal digits: in a Redis Cluster all keys of a bucket lie in
                     one slot, and all views of an entity in one bucket, so that reads and writes are grouped by it
    7 characters     of the project, view and join keys, so that a view's keys can be found by a pattern
    the entity       a whole number as 8 bytes, little-endian; text as UTF-8; bytes; several join keys one after
                     the other in the order of their names, each with its length

INT32, INT64 and UNIX_TIMESTAMP keys are the same whole number: a source may change from one to the other.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from almanac.errors import FeatureError
from features.packed.codec import Column

BUCKETS = 256
VIEW_CHARACTERS = 7
KEY_BYTES_MAX = 64 * 1024
FEW = 8
_HEX = [f"{number:02x}".encode() for number in range(BUCKETS)]
_HEX_ARRAY = np.array(_HEX, dtype="S2")
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: neighbours fall into different buckets
_INT_KEY = np.dtype([("open", "S2"), ("bucket", "S2"), ("view", f"S{1 + VIEW_CHARACTERS}"), ("entity", "<i8")])
_WHOLE = frozenset({"INT32", "INT64", "UNIX_TIMESTAMP"})
_DIGITS = re.compile(r"-?[0-9]+", re.ASCII)
_TEXT = frozenset({"STRING", "UUID", "TIME_UUID"})


class Keys(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """How the entities of one view are named in Redis.

    Args:
        join_keys: names and types, in any order.
    """

    project: str
    view: str
    join_keys: tuple[Column, ...]

    @property
    def view_part(self) -> bytes:
        """What all keys of the view have after their bucket."""
        return _view_part(self)

    @property
    def pattern(self) -> bytes:
        """Matches the view's keys and no others, for SCAN."""
        return b"f{??}" + self.view_part + b"*"

    def of(self, *entities: Any) -> list[bytes]:
        """Keys of n entities.

        Args:
            entities: for each join key, in the order of `join_keys`, its n values: an array or a list.

        Raises:
            FeatureError: a value is no key of its type; says which.
        """
        if len(entities) != len(self.join_keys):
            raise FeatureError(
                f"view {self.view} has the join keys {', '.join(key.name for key in self.join_keys)}: give each of them"
            )
        if len(entities) == 1 and self.join_keys[0].type in _WHOLE:
            return self._of_whole(_whole(self.join_keys[0], entities[0]))
        parts = sorted(zip(self.join_keys, entities, strict=True), key=lambda part: part[0].name)
        columns = [_as_bytes(key, values) for key, values in parts]
        if len(columns) == 1:
            named = columns[0]
        else:
            named = [
                b"".join([struct.pack("<I", len(part)) + part for part in row]) for row in zip(*columns, strict=True)
            ]
        end = b"}" + self.view_part
        return [b"f{" + _HEX[zlib.crc32(name) % BUCKETS] + end + name for name in named]

    def _of_whole(self, numbers: NDArray[np.int64]) -> list[bytes]:
        if len(numbers) <= FEW:  # for few, arrays cost more than they save
            end = b"}" + self.view_part
            spread = [(number * int(_SPREAD) & (1 << 64) - 1) >> 56 for number in numbers.tolist()]
            named = numbers.tobytes()
            return [b"f{" + _HEX[bucket] + end + named[8 * at : 8 * at + 8] for at, bucket in enumerate(spread)]
        made = np.empty(len(numbers), dtype=_INT_KEY)
        made["open"] = b"f{"
        made["bucket"] = _HEX_ARRAY[(numbers.view(np.uint64) * _SPREAD) >> np.uint64(56)]
        made["view"] = b"}" + self.view_part
        made["entity"] = numbers
        found: list[bytes] = made.view(f"V{_INT_KEY.itemsize}").tolist()
        return found


@lru_cache(maxsize=1_024)
def _view_part(keys: Keys) -> bytes:
    kinds = sorted((key.name, "whole" if key.type in _WHOLE else "other") for key in keys.join_keys)
    name = msgspec.json.encode([keys.project, keys.view, kinds])
    return base64.urlsafe_b64encode(blake2b(name, digest_size=6).digest())[:VIEW_CHARACTERS]


def _whole(key: Column, values: Any) -> NDArray[np.int64]:
    """Whole numbers of an array or a list."""
    given = np.asarray(values) if len(values) else np.empty(0, np.int64)
    if given.dtype.kind in "iu" and not (given.dtype == np.uint64 and len(given) and given.max() >= 1 << 63):
        return np.ascontiguousarray(given, dtype=np.int64)
    return np.array([_one_whole(key, value) for value in values], dtype=np.int64)


def _one_whole(key: Column, value: Any) -> int:
    try:
        number = int(value)
        if _says(value, number):
            struct.pack("<q", number)
            return number
    except (ValueError, TypeError, OverflowError, struct.error):
        pass
    raise not_a_key(key, value)


def _says(value: Any, number: int) -> bool:
    """Whether a value says this number and no other: not a float so large that its neighbours are whole, too."""
    if isinstance(value, str):
        return _DIGITS.fullmatch(value) is not None
    if isinstance(value, float | np.floating):
        digits = np.finfo(np.asarray(value).dtype).nmant + 1
        return number == float(value) and abs(number) < 2**digits
    return not isinstance(value, bool | np.bool_) and bool(number == value)


def _as_bytes(key: Column, values: Any) -> list[bytes]:
    if key.type in _WHOLE:
        data = _whole(key, values)
        return [data[at : at + 1].tobytes() for at in range(len(data))]
    listed = values.tolist() if isinstance(values, np.ndarray) else values
    found = []
    for value in listed:
        plain = value.as_py() if hasattr(value, "as_py") else value
        if plain is None or (key.type in _TEXT) != (not isinstance(plain, bytes)):
            raise not_a_key(key, plain)
        try:
            found.append(plain if isinstance(plain, bytes) else str(plain).encode())
        except UnicodeEncodeError:
            raise not_a_key(key, plain) from None
        if len(found[-1]) > KEY_BYTES_MAX:
            raise not_a_key(key, plain)
    return found


def not_a_key(key: Column, value: Any) -> FeatureError:
    """What is raised for a value that cannot name an entity."""
    return FeatureError(f"{key.name} {str(value)[:40]!r} is no {key.type.lower()}: ask for a key of that type")


def by_bucket(keys: Sequence[bytes]) -> list[list[int]]:
    """Places of keys that share a bucket, and so a slot of a Redis Cluster."""
    groups: dict[bytes, list[int]] = {}
    for at, key in enumerate(keys):
        groups.setdefault(key[2:4], []).append(at)
    return list(groups.values())
