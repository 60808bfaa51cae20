"""The lines of a pipeline of interactions, a Parquet file a month: what the source gave and what events brought.

    <features_dir>/<pipeline>/lines/2026-11.parquet

Each line knows which event it is of, by a hash of what that event says, so that
a basket that comes from the source and on the stream counts once; a basket of
which the stream had several events of one moment is known by its lines. A file says in
its own metadata what it was made from, up to which moment, and a digest of each
day's lines: what was computed from equal lines need not be computed again. Lines
that events brought stay when the source becomes another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.clock import DAY, DAY_MICROSECONDS, EPOCH, MICROSECOND, at_micros, micros_of
from features import parquet_files
from features.archive_lines import EVENTS, ITEMS, PRICES, QUANTITIES
from features.archived import archived_files
from features.files import replacing
from features.interactions.bulk import Baskets
from features.interactions.codes import coded, ragged_of, starts_of
from features.interactions.history import event_hashes, key_hashes
from features.layout import EVENT_TIMESTAMP, MADE_FROM, made_from
from features.sources.lines import COLUMNS, LineSource

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "lines"
ROW_GROUP = 250_000
"""Lines of a row group: what is in memory at once of a file that is read in part."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """What the files hold.

    Args:
        days: of each day with lines their number and a digest of them.
    """

    days: Mapping[date, str]

    def before(self, day: date) -> str:
        """A digest of all lines before a day."""
        text = json.dumps([[str(d), found] for d, found in sorted(self.days.items()) if d < day])
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class Lines:
    """The files of one pipeline; whoever writes holds the pipeline's lock.

    Args:
        folder: of the pipeline's features.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self._events = folder / EVENTS

    def bring_up(self, source: LineSource, origin: str, until: datetime) -> Held:
        """Have all lines up to a moment, included; months that have them already are left as they are.

        Args:
            origin: names source and code; months that were made from another are made again.
        """
        days: dict[date, str] = {}
        for start, end in _months(source.earliest, until):
            path = self.folder / f"{start:%Y-%m}.parquet"
            through, archived = min(end, until + MICROSECOND), self._archived(start, end)
            known, reach = made_from(path), micros_of(through)
            if known.get("origin") != origin or known["through"] < reach or known["archived"] != archived[0]:
                known = {"origin": origin, "through": reach, "archived": archived[0]}
                table = self._made(source, (start, through), path, archived[1])
                known["days"] = _digests(table)
                self._write(path, table, known)
            days |= {date.fromisoformat(day): digest for day, digest in known["days"].items()}
        return Held(days=days)

    def _archived(self, start: datetime, end: datetime) -> tuple[str, list[str]]:
        files = archived_files(self._events, start, end - MICROSECOND)
        names = sorted(Path(file).name for file in files)
        return hashlib.blake2b(json.dumps(names).encode(), digest_size=12).hexdigest(), files

    def _made(self, source: LineSource, span: tuple[datetime, datetime], path: Path, archived: list[str]) -> pa.Table:
        """The lines of a time: the source's, those that events brought before, and those of the archive."""
        import pyarrow as pa
        import pyarrow.compute as pc

        own = with_events(source.lines(*span))
        streamed = [_streamed(parquet_files.read(path))] if path.exists() else []
        streamed += [_exploded(parquet_files.read(file), span) for file in archived]
        parts = [own.append_column("streamed", pa.repeat(pa.scalar(False), own.num_rows))]
        parts += [_not_among(own, part) for part in streamed]
        known = pa.array([], pa.int64())
        kept = []
        for part in parts:  # an event that is there already is not taken again
            new = part.filter(pc.invert(pc.is_in(part["event"], known))) if len(known) else part
            kept.append(new)
            known = pc.unique(pa.concat_arrays([known, pc.unique(new["event"])]))
        found = pa.concat_tables(kept) if len(kept) > 1 else kept[0]
        return found.sort_by([("at", "ascending"), ("event", "ascending")]) if len(kept) > 1 else found

    def _write(self, path: Path, table: pa.Table, known: dict[str, Any]) -> None:
        import pyarrow.parquet as pq

        with replacing(path) as temporary:
            found = table.replace_schema_metadata({MADE_FROM: json.dumps(known)})
            pq.write_table(found, temporary, compression="zstd", row_group_size=ROW_GROUP)

    def newest(self, until: datetime) -> datetime | None:
        """The moment of the newest line at or before a moment; None if there is none."""
        import pyarrow.compute as pc

        for path in sorted(self.folder.glob("*.parquet"), reverse=True):
            if path.stem > f"{until:%Y-%m}":
                continue
            at = parquet_files.read(path, ["at"])["at"].cast("int64")
            found = pc.max(at.filter(pc.less_equal(at, micros_of(until)))).as_py()
            if found is not None:
                return at_micros(found)
        return None

    def baskets(self, start: datetime, end: datetime, items: Iterable[str] = ()) -> Baskets:
        """The lines from `start` up to `end`, which is excluded, in the order of entity, moment and event.

        Args:
            items: further items that are to have a place.
        """
        import pyarrow as pa

        tables = []
        for path in self.files(start, end):
            table = parquet_files.read(
                path, ["entity", "item", "at", "event", "quantity", "price"], dictionaries=("entity", "item")
            )
            at = table["at"].cast(pa.int64()).to_numpy()
            tables.append(table.filter(pa.array((at >= micros_of(start)) & (at < micros_of(end)))))
        if not tables:
            nothing, none = np.empty(0, np.int64), np.empty(0, np.float64)
            return Baskets([], sorted(set(items)), nothing, nothing, nothing, nothing, none, none)
        table = pa.concat_tables(tables).unify_dictionaries()
        entity, entities = coded(table["entity"])
        item, known = coded(table["item"])
        every = sorted({*known, *items})
        place = {key: at for at, key in enumerate(every)}
        item = np.array([place[key] for key in known], np.int64)[item]
        at, event = table["at"].cast(pa.int64()).to_numpy(), table["event"].to_numpy()
        order = np.lexsort((event, at, entity))
        quantity, price = (table[name].to_numpy()[order] for name in ("quantity", "price"))
        return Baskets(entities, every, entity[order], item[order], at[order], event[order], quantity, price)

    def files(self, start: datetime, end: datetime) -> list[Path]:
        """The files that can hold lines of a time, the end excluded."""
        first, last = f"{start:%Y-%m}", f"{end - MICROSECOND:%Y-%m}"
        return [path for path in sorted(self.folder.glob("*.parquet")) if first <= path.stem <= last]


def with_events(lines: pa.Table) -> pa.Table:
    """Lines in the order of time with the hash of the event that each is of: what an entity did at one moment."""
    import pyarrow as pa

    entity, entities = coded(lines["entity"])
    item, items = coded(lines["item"])
    at = np.asarray(lines["at"].cast(pa.int64()).to_numpy())
    amounts = np.stack([np.asarray(lines[name].to_numpy(), np.float64) for name in ("quantity", "price")])
    order = np.lexsort((entity, at))
    starts = starts_of(at[order], entity[order])
    offsets = np.append(starts, len(order))
    hashes = event_hashes(
        key_hashes(entities)[entity[order][starts]],
        at[order][starts],
        key_hashes(items)[item[order]],
        amounts[:, order],
        offsets,
    )
    table = lines.select(COLUMNS).take(pa.array(order))
    return table.append_column("event", pa.array(np.repeat(hashes, np.diff(offsets)), pa.int64()))


def _not_among(own: pa.Table, lines: pa.Table) -> pa.Table:
    """Lines that the source does not have: of one moment it knows one basket, where several events may have come."""
    import pyarrow as pa
    import pyarrow.compute as pc

    near = own.filter(pc.is_in(own["at"], pc.unique(lines["at"])))
    return lines.filter(pa.array(~np.isin(_line_hashes(lines), _line_hashes(near)))) if near.num_rows else lines


def _line_hashes(lines: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A hash of each line by itself, and of whose it is and when."""
    import pyarrow as pa

    entity, entities = coded(lines["entity"])
    item, items = coded(lines["item"])
    at = np.asarray(lines["at"].cast(pa.int64()).to_numpy())
    amounts = np.stack([np.asarray(lines[name].to_numpy(), np.float64) for name in ("quantity", "price")])
    each = np.arange(len(at) + 1)
    return event_hashes(key_hashes(entities)[entity], at, key_hashes(items)[item], amounts, each)


def _streamed(table: pa.Table) -> pa.Table:
    return table.filter(table["streamed"]).replace_schema_metadata(None)


def _exploded(table: pa.Table, span: tuple[datetime, datetime]) -> pa.Table:
    """Archived events of a time as lines."""
    import pyarrow as pa
    import pyarrow.compute as pc

    moments = table[EVENT_TIMESTAMP].cast(pa.timestamp("us", tz="UTC")).combine_chunks()
    inside = pc.and_(pc.greater_equal(moments, span[0]), pc.less(moments, span[1]))
    table, moments = table.filter(inside), moments.filter(inside)
    items, quantities, prices = (ragged_of(table[name]) for name in (ITEMS, QUANTITIES, PRICES))
    entities = table.column(0).combine_chunks().cast(pa.string())
    at = moments.cast(pa.int64()).to_numpy()
    hashes = event_hashes(
        key_hashes(entities.to_pylist()),
        at,
        key_hashes(items.values.tolist()),
        np.stack([quantities.values, prices.values]).astype(np.float64),
        items.offsets,
    )
    owner = pa.array(np.repeat(np.arange(len(at)), items.lengths))
    found = {
        "entity": entities.take(owner),
        "item": pa.array(items.values.tolist(), pa.string()),
        "quantity": pa.array(quantities.values, pa.float64()),
        "price": pa.array(prices.values, pa.float64()),
        "at": moments.take(owner),
        "event": pa.array(hashes, pa.int64()).take(owner),
        "streamed": pa.repeat(pa.scalar(True), len(owner)),
    }
    # Of an event that stands twice in the archive the second one goes: its lines follow the first one's.
    again = np.repeat(~np.isin(np.arange(len(at)), np.unique(hashes, return_index=True)[1]), items.lengths)
    return pa.table(found).filter(pa.array(~again))


def _digests(table: pa.Table) -> dict[str, str]:
    """Of each day the number of its lines and a sum of their hashes, whatever their order."""
    import pyarrow as pa

    days = table["at"].cast(pa.int64()).to_numpy() // DAY_MICROSECONDS
    hashes = table["event"].to_numpy().view(np.uint64)
    found = {}
    for day in np.unique(days).tolist():
        mine = hashes[days == day]
        found[str(EPOCH.date() + day * DAY)] = f"{len(mine)}:{int(mine.sum(dtype=np.uint64)):016x}"
    return found


def _months(first: datetime, last: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The months from one moment to another, each from its beginning to the next one's."""
    start = datetime(first.year, first.month, 1, tzinfo=UTC)
    while start <= last:
        end = datetime(start.year + start.month // 12, start.month % 12 + 1, 1, tzinfo=UTC)
        yield start, end
        start = end
