"""What `get_online_features` answers: Feast's OnlineResponse, made of packed rows when somebody looks at it.

Feast builds a protobuf message for every value, and `to_dict` takes each apart again. Here the rows stay packed until
somebody asks: `to_dict` (and `to_df`, `to_arrow`, `to_tensor`, which are made of it) reads whole columns, and `proto`
writes the response's bytes column by column and parses them once. Both give what Feast's own response gives.

The statuses are those of Feast's protocol, kept to its words: PRESENT is a value within the view's ttl, OUTSIDE_MAX_AGE
one beyond it (the value stays in the answer, as in Feast's own, unless the store is told to leave it out), NULL_VALUE a
feature without a value in a row that is there, NOT_FOUND an entity without a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.value_type import ValueType
from numpy.typing import NDArray

from features.online_sdk.values import Cells, entries, plain_columns, python_values, varint
from features.packed.codec import Packed

PRESENT = int(FieldStatus.PRESENT)
NULL_VALUE = int(FieldStatus.NULL_VALUE)
NOT_FOUND = int(FieldStatus.NOT_FOUND)
OUTSIDE_MAX_AGE = int(FieldStatus.OUTSIDE_MAX_AGE)

_MILLION = 1_000_000
_TAG = [bytes([number]) for number in range(128)]
_NO_TIME = b"\x1a\x00"  # an event time of 1970, as protobuf writes it
_TIMESTAMP_POSTFIX = "__ts"


@dataclass(kw_only=True)
class ViewRows:
    """One feature view's rows for n entities, still packed.

    Args:
        names: the features asked for.
        shown: their names in the answer.
        parts: the rows, by layout; see `features.packed.codec.parse`.
        rows: n.
        oldest: event times before this (microseconds) are outside the view's ttl; None if it has none.
        keep_expired: whether such a row's values are given all the same.
    """

    names: tuple[str, ...]
    shown: Sequence[str]
    parts: Sequence[Packed]
    rows: int
    oldest: int | None
    keep_expired: bool

    @cached_property
    def times(self) -> NDArray[np.int64]:
        """Event times in microseconds; 0 where there is no row."""
        if len(self.parts) == 1 and self.parts[0].where is None:
            return self.parts[0].times
        found = np.zeros(self.rows, np.int64)
        for part in self.parts:
            found[part.where] = part.times
        return found

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """Which entities have a row."""
        if len(self.parts) == 1 and self.parts[0].where is None:
            return self.parts[0].present
        found = np.zeros(self.rows, bool)
        for part in self.parts:
            found[part.where] = part.present
        return found

    @cached_property
    def expired(self) -> NDArray[np.bool_] | None:
        """Which rows are outside the ttl; None if none is."""
        if self.oldest is None:
            return None
        found = self.present & (self.times < self.oldest)
        return found if found.any() else None

    @cached_property
    def states(self) -> NDArray[np.uint8]:
        """Each row's status, as of its values that are not null."""
        found = np.where(self.present, np.uint8(PRESENT), np.uint8(NOT_FOUND))
        if self.expired is not None:
            found[self.expired] = OUTSIDE_MAX_AGE
        return found

    def cells(self) -> list[Cells]:
        """The columns in the order of `names`; absent, null and (unless kept) expired cells are None in them."""
        found = Cells.of(self.parts, self.names, self.rows)
        if not self.keep_expired and self.expired is not None:
            left_out = np.flatnonzero(self.expired).tolist()
            found = [cells.without(left_out) for cells in found]
        return found

    def shown_values(self, types: Mapping[str, ValueType]) -> dict[str, list[Any]]:
        """The columns as Feast's `to_dict` shows them."""
        if len(self.parts) == 1 and self.parts[0].where is None and self.keep_expired:
            columns = plain_columns(self.parts[0], self.names)
            if columns is not None:
                return dict(zip(self.shown, columns, strict=True))
        pairs = zip(self.shown, self.cells(), strict=True)
        return {name: python_values(cells, types.get(name)) for name, cells in pairs}

    def vectors(self) -> list[bytes]:
        """For each feature, the bytes of Feast's FeatureVector."""
        times, statuses = self._wire_times(), self.states.tobytes()
        all_there = _field(0x12, statuses) + times
        found = []
        for cells in self.cells():
            ending = _field(0x12, self._with_nulls(cells, statuses)) + times if cells.nulls else all_there
            found.append(entries(cells) + ending)
        return found

    def seconds(self) -> list[int]:
        """Event times in whole seconds, as `to_dict` shows them."""
        found: list[int] = (self.times // _MILLION).tolist()
        return found

    def counts(self) -> tuple[int, int]:
        """How many values have a row, and how many have none: what Feast's metrics count."""
        there = int(self.present.sum())
        return there * len(self.names), (self.rows - there) * len(self.names)

    def _with_nulls(self, cells: Cells, statuses: bytes) -> bytes:
        changed = bytearray(statuses)
        for at in cells.nulls:
            if changed[at] == PRESENT:
                changed[at] = NULL_VALUE
        return bytes(changed)

    def _wire_times(self) -> bytes:
        known: dict[int, bytes] = {0: _NO_TIME}
        found = []
        for micros in self.times.tolist():
            entry = known.get(micros)
            if entry is None:
                entry = known[micros] = _timestamp(micros)
            found.append(entry)
        return b"".join(found)


@dataclass(slots=True, kw_only=True)
class EntityColumn:
    """One join key of the request, given back with the answer."""

    name: str
    cells: Cells

    def vector(self) -> bytes:
        """The bytes of Feast's FeatureVector: all present, without event times."""
        rows = len(self.cells.values)
        return entries(self.cells) + _field(0x12, bytes([PRESENT]) * rows) + _NO_TIME * rows


@dataclass(kw_only=True)
class PackedResponse(OnlineResponse):  # type: ignore[misc]
    """Feast's `OnlineResponse` over rows that are still packed."""

    entities: Sequence[EntityColumn]
    views: Sequence[ViewRows]
    types: Mapping[str, ValueType]
    _proto: GetOnlineFeaturesResponse | None = field(default=None, repr=False)

    @property
    def proto(self) -> GetOnlineFeaturesResponse:
        """The response as Feast's message; made when first asked for, and then the answer is what it says."""
        if self._proto is None:
            names = [column.name for column in self.entities]
            names += [name for view in self.views for name in view.shown]
            vectors = [column.vector() for column in self.entities]
            vectors += [vector for view in self.views for vector in view.vectors()]
            made = GetOnlineFeaturesResponse.FromString(b"".join(_field(0x12, vector) for vector in vectors))
            made.metadata.feature_names.val.extend(names)
            self._proto = made
        return self._proto

    @property
    def _feature_types(self) -> Mapping[str, ValueType]:
        return self.types

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, Any]:
        """The columns by name, as lists of plain Python values; None where there is none."""
        if self._proto is not None:  # somebody may have changed it
            found: dict[str, Any] = super().to_dict(include_event_timestamps)
            return found
        answer: dict[str, Any] = {}
        for column in self.entities:
            answer[column.name] = python_values(column.cells, None)
            if include_event_timestamps:
                answer[column.name + _TIMESTAMP_POSTFIX] = [0] * len(column.cells.values)
        for view in self.views:
            columns = view.shown_values(self.types)
            if not include_event_timestamps:
                answer |= columns
                continue
            for name, values in columns.items():
                answer[name] = values
                answer[name + _TIMESTAMP_POSTFIX] = view.seconds()
        return answer


def _field(tag: int, content: bytes) -> bytes:
    return _TAG[tag] + varint(len(content)) + content


def _timestamp(micros: int) -> bytes:
    seconds, rest = divmod(micros, _MILLION)
    content = (b"\x08" + varint(seconds) if seconds else b"") + (b"\x10" + varint(rest * 1_000) if rest else b"")
    return _field(0x1A, content)
