"""Names of tables in Postgres and keys in Redis, and how records look as bytes. No I/O.

Redis, everything of one pipeline in one hash slot:

    almanac:{bikes}:pointer                JSON of a Pointer: one GET says what to read
    almanac:{bikes}:marker                 random text; gone means Redis was emptied
    almanac:{bikes}:generations            set of the generations whose manifests are here
    almanac:{bikes}:manifest:<generation>  hash: partition -> JSON of a ManifestEntry
    almanac:{bikes}:block:<hash>           a block's bytes
    almanac:{bikes}:overlay:<entity>       hash: model -> JSON [as_of in microseconds, topic,
                                           partition, offset, OverlayRecord]
    almanac:{bikes}:overlaid:<slice>       hash: entity -> JSON, model to as_of in microseconds: which
                                           overlays there should be (`overlaid.py`)
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from almanac.clock import micros_of
from almanac.errors import BlockError, PredictionError
from serving_cache.records import ManifestEntry, OverlayRecord, Pointer

_encode_json = msgspec.json.Encoder().encode


def table_name(pipeline: str) -> str:
    """The partitioned table that holds a pipeline's predictions."""
    return f"predictions_{pipeline}"


def child_name(pipeline: str, generation: int) -> str:
    """The table that holds the rows which one generation's run wrote; lookups read it directly."""
    return f"predictions_{pipeline}_g{generation}"


def view_name(pipeline: str) -> str:
    """The view of what readers see now, for people."""
    return f"{pipeline}_current"


def pointer_key(pipeline: str) -> str:
    """Key of the pointer; `decode_pointer` reads its value."""
    return f"almanac:{{{pipeline}}}:pointer"


def marker_key(pipeline: str) -> str:
    """Key that is gone once Redis was emptied."""
    return f"almanac:{{{pipeline}}}:marker"


def generations_key(pipeline: str) -> str:
    """Key of the set of generations whose manifests Redis holds."""
    return f"almanac:{{{pipeline}}}:generations"


def manifest_key(pipeline: str, generation: int) -> str:
    """Key of a generation's manifest: partition (decimal) to what `decode_manifest_entry` reads."""
    return f"almanac:{{{pipeline}}}:manifest:{generation}"


def block_key(pipeline: str, block_hash: str) -> str:
    """Key of a block: `almanac.blocks.decode` reads its value."""
    return f"almanac:{{{pipeline}}}:block:{block_hash}"


def overlay_key(pipeline: str, entity: str) -> str:
    """Key of an entity's overlays: model id to what `decode_overlay` reads."""
    return f"almanac:{{{pipeline}}}:overlay:{entity}"


def encode_record(record: Pointer | ManifestEntry) -> bytes:
    """A pointer or a manifest entry as JSON."""
    return _encode_json(record)


def decode_pointer(data: bytes) -> Pointer:
    """Read a pointer.

    Raises:
        BlockError: these bytes are no pointer, or one of another version of this program.
    """
    return _decode(data, Pointer)  # type: ignore[no-any-return]


def decode_manifest_entry(data: bytes) -> ManifestEntry:
    """Read one partition's manifest entry.

    Raises:
        BlockError: these bytes are no manifest entry.
    """
    return _decode(data, ManifestEntry)  # type: ignore[no-any-return]


def encode_overlay(record: OverlayRecord) -> bytes:
    """An overlay as JSON, led by the sequence that Redis compares."""
    return _encode_json((micros_of(record.as_of), record.topic, record.kafka_partition, record.kafka_offset, record))


def decode_overlay(data: bytes) -> OverlayRecord:
    """Read an overlay.

    Raises:
        BlockError: these bytes are no overlay.
    """
    found = _decode(data, tuple[int, str, int, int, OverlayRecord])
    return found[4]  # type: ignore[no-any-return]


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _decode(data: bytes, kind: Any) -> Any:
    try:
        return _decoder(kind).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, PredictionError) as error:
        raise BlockError(f"Redis holds something that cannot be read ({error}): run `almanac rebuild`") from None
