"""Real interactions from a Parquet file, a line a row, with its clock shifted up to now when it is of the past."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from almanac.clock import DAY, MICROSECOND, at_micros, micros_of
from almanac.errors import SourceError
from almanac.interactions import Interactions
from almanac.partitioning import Buckets
from almanac.settings import Settings
from features import parquet_files
from features.parquet_budget import TEXT_BYTES_MAX, is_text, long_text
from features.sources.gates import REASONS, Believed, described, pass_gates
from features.sources.recorded import CLOCK_FILE, Replayed, settle_clock

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_MAX = 200_000_000


@dataclass(frozen=True, kw_only=True)
class LinesRecording:
    """All rows of a file, and what the gates made of them.

    Args:
        path: the file.
        digest: SHA-256 of its bytes, hexadecimal.
        raw: its rows as they are.
        believed: those that passed, on the file's own clock.
    """

    path: Path
    digest: str
    raw: pa.Table
    believed: Believed

    @cached_property
    def times(self) -> NDArray[np.int64]:
        """The moment of each line that passed, microseconds since 1970, ascending."""
        import pyarrow as pa

        return np.asarray(self.believed.lines["at"].cast(pa.int64()).to_numpy())

    @property
    def first(self) -> datetime:
        """Its first moment, on its own clock."""
        return at_micros(self.times[0])

    @property
    def last(self) -> datetime:
        """Its last moment, on its own clock."""
        return at_micros(self.times[-1])


def read_lines(path: Path, declared: Interactions, partitions: Buckets, now: datetime) -> LinesRecording:
    """Read a file and pass its rows through the gates; see `pass_gates`.

    Raises:
        SourceError: it cannot be read, lacks a column, a column has another type, or no row passes.
    """
    import pyarrow as pa

    if not path.is_file():
        raise SourceError(f"{path} is not a file: correct ALMANAC_SOURCE_DATA, or leave it out for a simulated source")
    names, names_read = declared.columns, _ordered(declared)
    try:
        footer = parquet_files.footer(path)
        schema = footer.schema.to_arrow_schema()
        found = schema.names
        absent = [name for name in _ordered(declared) if name not in found]
        if absent:
            raise SourceError(
                f"{path} has no column {', '.join(absent)} (found: {', '.join(found[:20])}): "
                "give the declared columns, or declare the file's in Interactions.columns"
            )
        if again := [name for name in _ordered(declared) if found.count(name) > 1]:
            raise SourceError(f"{path} has more than one column {', '.join(again)}: give each once")
        if footer.num_rows > ROWS_MAX:
            raise SourceError(f"{path} has {footer.num_rows:,} rows, more than {ROWS_MAX:,}: cut it")
        texts = [name for name in (names.entity, names.item) if is_text(schema.field(name).type)]
        # Texts as dictionaries: one that stands in each of many rows takes its memory once.
        raw = parquet_files.read(path, names_read, dictionaries=texts, error=SourceError)
        for name in texts:
            if (size := long_text(raw[name])) is not None:
                raise SourceError(
                    f"{path}: {name} has a text of {size:,} bytes, more than {TEXT_BYTES_MAX:,}: correct it"
                )
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0][:200]
        raise SourceError(f"{path} is not a whole Parquet file ({reason}): replace it; make Parquet of a CSV") from None
    table = pa.table(
        {
            "entity": _key(path, names.entity, raw[names.entity]),
            "item": _key(path, names.item, raw[names.item]),
            "quantity": _number(path, names.quantity, raw[names.quantity]),
            "price": _number(path, names.price, raw[names.price]),
            "at": _time(path, names.time, raw[names.time], declared.time_zone),
        }
    )
    believed = pass_gates(table, declared, partitions, now)
    if not believed.lines.num_rows:
        raise SourceError(
            f"{path}: none of {raw.num_rows:,} rows can be used ({described(believed.counts)}): correct the file, or "
            "what Interactions declares"
        )
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return LinesRecording(path=path, digest=digest, raw=raw, believed=believed)


def _ordered(declared: Interactions) -> list[str]:
    columns = declared.columns
    return [columns.entity, columns.item, columns.quantity, columns.price, columns.time]


def _key(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow.types as types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    if not (number or text or types.is_null(kind)):
        raise SourceError(f"{path}: {name} is {column.type}: give text or numbers")
    return column.cast(kind) if kind is not column.type else column


def _number(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    from features.declared_types import nearest

    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise SourceError(f"{path}: {name} is {kind}: give numbers")
    return nearest(column, pa.float64())


def _time(path: Path, name: str, column: pa.ChunkedArray, zone: str) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_timestamp(column.type):
        raise SourceError(f"{path}: {name} is {column.type}: give timestamps")
    micros = pc.CastOptions(pa.timestamp("us", tz=column.type.tz), allow_time_truncate=True)
    try:
        whole = column.cast(options=micros)
    except pa.ArrowInvalid:
        raise SourceError(f"{path}: {name} holds times that no calendar has: correct them") from None
    if column.type.tz is None:
        # Of an hour that a clock showed twice, the first; one that it never showed is taken as the moment it jumped.
        whole = pc.assume_timezone(whole, timezone=zone, ambiguous="earliest", nonexistent="latest")
    return whole.cast(pa.timestamp("us", tz="UTC"))


def open_baskets(
    name: str, settings: Settings, path: Path, declared: tuple[Interactions, Buckets], now: datetime
) -> Baskets:
    """Read a file and settle its clock; see `features.sources.lines.open_lines`."""
    recording = read_lines(path, *declared, now)
    return Baskets(recording, settle_clock(settings.features_dir / CLOCK_FILE, name, recording, now, DAY))


class Baskets(Replayed[LinesRecording]):
    """A `LineSource` of real interactions from a file, on a shifted clock."""

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return int(self._recording.raw.num_rows)

    @property
    def set_aside(self) -> Mapping[str, int]:
        """How many rows were not believed, by reason."""
        return self._recording.believed.counts

    def describe(self) -> str:
        """One line for a person."""
        return self._told(f"{self._recording.believed.lines.num_rows:,} lines")

    def latest(self, now: datetime) -> datetime:
        """The moment of the last line at or before `now`; see `LineSource.latest`."""
        until = self._until(now + MICROSECOND)
        if not until:
            raise self._nothing_until(now)
        return at_micros(self._recording.times[until - 1]) + self.clock_shift

    def lines(self, start: datetime, end: datetime) -> pa.Table:
        """The lines of a time; see `LineSource.lines`."""
        import pyarrow as pa

        first, until = self._until(start), self._until(end)
        found = self._recording.believed.lines.slice(first, max(until - first, 0))
        shifted = found["at"].cast(pa.int64()).to_numpy() + self.clock_shift // MICROSECOND
        return found.set_column(4, "at", pa.array(shifted).cast(pa.timestamp("us", tz="UTC")))

    def kept_aside(self) -> pa.Table:
        """The rows that were set aside, with the reason of each."""
        import pyarrow as pa

        reasons = self._recording.believed.reasons
        rows = np.flatnonzero(reasons >= 0)
        words = pa.array(list(REASONS)).take(pa.array(reasons[rows].astype(np.int64)))
        return self._recording.raw.take(pa.array(rows)).append_column("reason", words)

    def _until(self, moment: datetime) -> int:
        """How many lines are before a moment."""
        own = micros_of(moment - self.clock_shift)
        return int(np.searchsorted(self._recording.times, own, side="left"))
