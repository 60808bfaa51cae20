"""What overlays Redis should hold: notes beside them, by which one that was evicted or deleted is missed. Pure.

An overlay is a key of its own, and its absence looks as if there had never been one. So each is noted when it is
written, in one of `SLICES` hashes (entity to the as_of of each of its models), in the same script. A slice that was
lost itself lacks the field `WHOLE`, which is written once every overlay of the record was brought: without it a reader
knows nothing, and asks Postgres.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any
from zlib import crc32

import msgspec

from almanac.clock import micros_of
from almanac.errors import BlockError
from serving_cache.records import OverlayRecord

SLICES = 64
"""Of one pipeline: small enough to be read at once, few enough to be looked at each second."""
WHOLE = ""
"""Field of a slice that notes every overlay; no entity is named so."""
FILLING = "\0"
"""Field of a slice that is being filled, with a word of whoever fills it; no entity holds a zero."""


def slice_of(entity: str) -> int:
    """The slice that notes an entity's overlays."""
    return crc32(entity.encode()) % SLICES


def slice_key(pipeline: str, number: int) -> str:
    """Key of a slice, in the pipeline's hash slot."""
    return f"almanac:{{{pipeline}}}:overlaid:{number}"


def lost(noted: bytes | None, overlays: Iterable[OverlayRecord], since: datetime) -> bool:
    """Whether an overlay that was noted is not there, and would count.

    Args:
        noted: what the entity's slice has of it, read before the overlays were.
        since: an older one changes no answer.

    Raises:
        BlockError: the note cannot be read.
    """
    if noted is None:
        return False
    there = {overlay.model: micros_of(overlay.as_of) for overlay in overlays}
    oldest = micros_of(since)
    return any(
        int(as_of) >= oldest and there.get(model, oldest - 1) < int(as_of) for model, as_of in _noted(noted).items()
    )


def _noted(data: bytes) -> Mapping[str, str]:
    try:
        found: Mapping[str, str] = _decoder().decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BlockError(
            f"Redis holds a note of overlays that cannot be read ({error}): run `almanac rebuild`"
        ) from None
    return found


@cache
def _decoder() -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(dict[str, str])
