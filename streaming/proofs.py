"""Proofs: what a header claims of an event's first place is believed only where a stream worker wrote it.

Anybody who may write to the events' topic can write headers. So a worker signs what it writes there and in the
dead-letter topic: `almanac.proof` is an HMAC, with a secret that only workers have, of the place, the incarnation and
all of the event: key, value and its own headers. `almanac redrive` passes a dead letter's proof on, and needs no
secret. A worker takes claims without a proof off the event before anything else sees it, and says so.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgspec

from almanac.errors import UsageError
from almanac.metrics import STREAM_UNPROVED
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from streaming.event_places import Headers, number_in, places
from streaming.records import (
    HEADER_CUT,
    HEADER_FORWARDED,
    HEADER_INCARNATION,
    HEADER_ORIGIN,
    HEADER_PROOF,
    RESERVED_HEADERS,
    Consumed,
    Produced,
    read_dead_letter,
)
from streaming.report import Report

CLAIMS = frozenset({HEADER_ORIGIN, HEADER_FORWARDED, HEADER_INCARNATION, HEADER_PROOF, HEADER_CUT})
"""Headers that a worker believes; of an event whose proof is missing or another's they are taken off."""
SECRET_CHARACTERS_MIN = 16
SECRETS_MAX = 4
SAID_SECONDS = 60.0
"""Time between two lines about claims without a proof: who sends them must not fill the log."""


class Proofs:
    """Signs what a worker writes, and checks what it reads.

    Args:
        secrets: the first one signs, each of them proves; without any nothing is signed and no claim believed.
        dead_letter_topic: a record for it says by its last headers where its event stood.
    """

    def __init__(self, secrets: Sequence[str], dead_letter_topic: str, report: Report) -> None:
        self._dead_letter_topic = dead_letter_topic
        self._secrets = [each.encode() for each in secrets]
        self._report = report
        self._silent_until = 0.0
        if not secrets:
            report.warn(
                "no origin_secret is known: an event that is sent again counts as a new one; set "
                "ALMANAC_ORIGIN_SECRET_FILE, the same for every stream worker"
            )

    @classmethod
    def of(cls, pipeline: Pipeline, settings: Settings, report: Report) -> Proofs:
        """The proofs of a pipeline's worker, with the setting's secrets.

        Raises:
            UsageError: the setting has too many or too short ones; quotes nothing of it.
        """
        secrets = (settings.origin_secret or "").split()
        if len(secrets) > SECRETS_MAX or any(len(each) < SECRET_CHARACTERS_MIN for each in secrets):
            raise UsageError(
                f"origin_secret is not up to {SECRETS_MAX} words of at least {SECRET_CHARACTERS_MIN} characters, "
                "with spaces between them: make its file anew (docs/operations.md)"
            )
        return cls(secrets, pipeline.dead_letter_topic, report)

    def signed(self, records: Iterable[Produced]) -> list[Produced]:
        """Records about to be written: dead letters and forwarded events with a proof of what they say."""
        return [self._signed(record) for record in records]

    def _signed(self, record: Produced) -> Produced:
        refused = record.topic == self._dead_letter_topic
        if not refused and all(name != HEADER_FORWARDED for name, _ in record.headers):
            return record
        headers = tuple(header for header in record.headers if header[0] != HEADER_PROOF)
        if self._secrets:
            claims = _dead_letter_claims(headers) if refused else _claims(headers)
            proof = _proof(self._secrets[0], claims, record.key, record.value, headers)
            headers = (*headers, (HEADER_PROOF, proof))
        return replace(record, headers=headers)

    def checked(self, records: Iterable[Consumed]) -> list[Consumed]:
        """Records as they were read, without the claims that nothing proves; these are counted and said."""
        found = list(records)
        unproved = [at for at, record in enumerate(found) if not self._proved(record)]
        for at in unproved:
            own = tuple(header for header in found[at].headers if header[0] not in CLAIMS)
            found[at] = replace(found[at], headers=own)
        if unproved:
            self._say(found[unproved[0]], len(unproved))
        return found

    def _proved(self, record: Consumed) -> bool:
        """Whether it claims nothing, or a worker wrote what it claims."""
        said = [content or b"" for name, content in record.headers if name == HEADER_PROOF]
        if not any(name in CLAIMS for name, _ in record.headers):
            return True
        if len(said) != 1:
            return False
        claims = _claims(record.headers)
        return any(
            hmac.compare_digest(said[0], _proof(secret, claims, record.key, record.value, record.headers))
            for secret in self._secrets
        )

    def _say(self, first: Consumed, count: int) -> None:
        self._report.add(unproved_claims=count)
        STREAM_UNPROVED.labels(self._report.pipeline).inc(count)
        if time.monotonic() < self._silent_until:
            return
        self._silent_until = time.monotonic() + SAID_SECONDS
        self._report.warn(
            f"{first.topic}/{first.partition} offset {first.offset} claims in its headers to have stood elsewhere, and "
            "no worker proved that: the claim is ignored, the event counts as a new one; find who else writes such "
            "headers, or whether the secret was changed without keeping the old one"
        )


_Claims = tuple[list[tuple[str, int, int]], list[tuple[str, int, int]], int]


def _claims(headers: Headers) -> _Claims:
    """Where an event says that it first stood, where it stood before it was forwarded, and in which incarnation."""
    return places(headers, HEADER_ORIGIN), places(headers, HEADER_FORWARDED), number_in(headers, HEADER_INCARNATION)


def _dead_letter_claims(headers: Headers) -> _Claims:
    """The same of the event that a dead letter becomes when it is sent again."""
    letter = read_dead_letter(Consumed(topic="", partition=0, offset=0, key=None, value=None, headers=tuple(headers)))
    return [(letter.topic, letter.partition, letter.offset)], [], letter.incarnation


def _proof(secret: bytes, claims: _Claims, key: bytes | None, value: bytes | None, headers: Headers) -> bytes:
    own = [
        (name.encode("utf-8", "surrogatepass"), content) for name, content in headers if name not in RESERVED_HEADERS
    ]
    message = msgspec.msgpack.encode(("almanac.origin", claims, key, value, own))
    return hmac.new(secret, message, hashlib.sha256).hexdigest().encode()
