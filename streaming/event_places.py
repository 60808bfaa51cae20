"""Where an event stands or stood: topic, partition and offset, as headers and records say them. Pure, no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Headers = Sequence[tuple[str, bytes | None]]

PARTITION_MAX, OFFSET_MAX = 2**31 - 1, 2**63 - 1
"""What Kafka's protocol can say, and the archive's and Postgres's columns can hold."""
INCARNATION_MAX = 10**16 - 1
PLACE_DIGITS_MAX = 18
"""Digits of a number in a header; a number of thousands of digits is an error to Python."""
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_ORIGIN = re.compile(rb"([A-Za-z0-9._-]{1,249})/(\d{1,9})/(\d{1,18})")


def places(headers: Headers, name: str) -> list[tuple[str, int, int]]:
    """The places that headers of this name say, in their order."""
    found = [_ORIGIN.fullmatch(content or b"") for each, content in headers if each == name]
    return [(match[1].decode(), int(match[2]), int(match[3])) for match in found if match]


def number_in(headers: Headers, name: str) -> int:
    """The number that the last header of this name says; 0 where there is none."""
    found = [content or b"" for each, content in headers if each == name]
    return int(found[-1]) if found and re.fullmatch(rb"\d{1,16}", found[-1]) else 0


def source_of(body: Mapping[str, Any]) -> tuple[str, int, int]:
    """Where the event stood, as a record says it: a topic's name as Kafka allows it, and numbers that stores can hold.

    Raises:
        ValueError: it says anything else, such as a topic that would name a folder.
    """
    said = body["source"]
    topic = said["topic"]
    if not isinstance(topic, str) or not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise ValueError("source.topic is no name of a topic")
    return (
        topic,
        whole_number(body["source"]["partition"], PARTITION_MAX),
        whole_number(body["source"]["offset"], OFFSET_MAX),
    )


def whole_number(found: Any, most: int) -> int:
    """A number that is whole and from 0 to `most`.

    Raises:
        ValueError: it is not.
    """
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= most:
        raise ValueError(f"a number of its place is not a whole number from 0 to {most}")
    return found
