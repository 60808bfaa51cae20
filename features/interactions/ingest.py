"""Bring the offline features of interactions up to a time: lines, then the views' Parquet files.

1. the lines of every month, from the source and from archived events;
2. what is known of items at each midnight: `<stats>/<day>.parquet`, `<together>/<day>.parquet`;
3. every entity's history: its row at each moment, `<history>/<day>.parquet` a day, and what was before the first
   of these days, `<history>/before-<day>.parquet`: the newest row of each entity until then;
4. the rows that were set aside, and their counts, `set_aside/`.

Each file says which lines it was made from, by their digest, so that a night
writes what is new, and an event that comes late what it changes: the days from
its own on, and the nights after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.clock import DAY, format_time, micros_of, utc_now
from almanac.code.following import code_of
from almanac.errors import SourceError
from almanac.interactions import Interactions
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from features.archived import newest_events
from features.files import locked, replacing
from features.interactions.bulk import Baskets, arrow_type, histories, schema_of
from features.interactions.history import HISTORY, STATS, TOGETHER
from features.interactions.items import Nights, nights
from features.interactions.lines import Held, Lines
from features.layout import CREATED_TIMESTAMP, EVENT_TIMESTAMP, MADE_FROM, day_file, made_from, view_dir
from features.parquet_files import relation
from features.sources.lines import LineSource, declared_of, open_lines

if TYPE_CHECKING:
    import pyarrow as pa

ENTITIES_AT_ONCE = 100_000
"""Entities whose histories are made at once: bounds the memory of a step to some hundred megabytes."""
WEEK_DAYS = 7
"""Days between nights that say anew what goes together; what is popular is said every night."""
ARCHIVE_LAG = timedelta(minutes=1)
"""What the archive may lack of what the stream did: rows are dated back by it, so that one which the stream wrote
since, of the same moment but with an event that came late, stays online."""
KEPT_DAYS = 400
"""Days with rows of their own before those that are asked for; then what was before is taken together anew."""
BASE = "before-"
SET_ASIDE = "set_aside"


@dataclass(frozen=True, kw_only=True)
class Brought:
    """What a refresh found and did.

    Args:
        as_of: the moment of the newest line at or before the cutoff.
        clock_shift: what was added to the lines' own times.
        files: how many were written.
        rows: in them.
    """

    as_of: datetime
    clock_shift: timedelta
    files: int
    rows: int


def refresh_interactions(pipeline: Pipeline, settings: Settings, cutoff: datetime, *, window: timedelta) -> Brought:
    """Make the rows of every moment from `cutoff - window` up to `cutoff` exist, and what each entity had before.

    Raises:
        SourceError: the source has too little before the cutoff, or cannot be used.
        Unavailable: another refresh held the lock too long.
    """
    _, declared = declared_of(pipeline)
    source = open_lines(pipeline, settings)
    folder = settings.features_dir / pipeline.name
    origin = origin_of(source, declared)
    with locked(folder / "ingest.lock"):
        known_at = utc_now() - ARCHIVE_LAG
        source.latest(cutoff)
        lines = Lines(folder)
        held = lines.bring_up(source, origin, cutoff)
        as_of = lines.newest(cutoff) or source.latest(cutoff)
        first_night = min(held.days) + DAY
        if cutoff.date() < first_night:
            raise SourceError(
                f"features of {format_time(as_of)} need the lines of a whole day, but they begin at "
                f"{format_time(source.earliest)} ({source.describe()}): ask for a later time"
            )
        start = max((cutoff - window).date(), first_night)
        files = _Files(pipeline, settings, lines, held, (origin, known_at))
        files.write_nights(start, cutoff.date())
        files.write_histories(start, as_of.date())
        keep_aside(source, folder / SET_ASIDE)
    return Brought(as_of=as_of, clock_shift=source.clock_shift, files=files.written, rows=files.rows)


def reach_of_interactions(pipeline: Pipeline, settings: Settings, cutoff: datetime) -> datetime:
    """The moment of the newest line at or before the cutoff, of the source or an archived event.

    Raises:
        SourceError: there is none in the source, or it cannot be used.
    """
    latest = open_lines(pipeline, settings).latest(cutoff)
    events = newest_events(settings.features_dir / pipeline.name, pipeline.entity, latest, cutoff)
    return max([latest, *events.values()])


def origin_of(source: LineSource, declared: Interactions) -> str:
    """Names what features are made from: the source's lines, what is declared of them, and the code."""
    text = f"{code_of((__name__,)).digest}\0{declared!r}\0{source.identity}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def keep_aside(source: LineSource, folder: Path) -> None:
    """Write the rows that were set aside and their counts, where somebody may look at them; once for each source."""
    import pyarrow.parquet as pq

    rows, counts, aside = source.rows, folder / "counts.json", dict(source.set_aside)
    if rows is None:
        return
    found = {"source": source.describe(), "rows": rows, "lines": rows - sum(aside.values()), "set_aside": aside}
    text = json.dumps({**found, "identity": source.identity}, indent=1) + "\n"
    if counts.exists() and counts.read_text() == text:
        return
    table = source.kept_aside()
    if table is not None:
        with replacing(folder / "rows.parquet") as temporary:
            pq.write_table(table, temporary, compression="zstd")
    with replacing(counts) as temporary:
        temporary.write_text(text)


class _Files:
    """The views' files of one pipeline; the caller holds the lock."""

    def __init__(
        self, pipeline: Pipeline, settings: Settings, lines: Lines, held: Held, made: tuple[str, datetime]
    ) -> None:
        _, self._declared = declared_of(pipeline)
        self._pipeline, self._lines, self._held = pipeline, lines, held
        self._origin, self._known_at = made
        self._folder = settings.features_dir / pipeline.name
        self._views = {
            name: view_dir(settings.features_dir, pipeline.name, name)
            for name in (self._declared.history, self._declared.stats, self._declared.together)
        }
        self._columns = {
            self._declared.history: HISTORY,
            self._declared.stats: STATS,
            self._declared.together: TOGETHER,
        }
        self.written = self.rows = 0

    def write_nights(self, first: date, last: date) -> None:
        """What is known of items at midnights from one day to another, where it is absent or not of these lines.

        A night after a day without lines knows nothing new, and has no rows.
        """
        every = [day + DAY for day in sorted(self._held.days) if day < last]
        said = sorted(_first_of(self._declared.items_every // DAY, every).values())
        weeks = _first_of(WEEK_DAYS, said)
        # What holds on the first day was said the night before it, and what goes together that week's first night.
        start = max((night for night in said if night <= first), default=said[0])
        wanted = sorted({weeks[start.toordinal() // WEEK_DAYS], *(night for night in said if night >= start)})
        folders = [self._views[name] for name in (self._declared.stats, self._declared.together)]
        for path in [path for folder in folders for path in folder.glob("*.parquet")]:
            night = date.fromisoformat(path.stem)
            if night <= last and night not in said:  # declared otherwise since, or a line came late
                path.unlink()
        absent = [night for night in wanted if not all(self._valid(day_file(f, night), night) for f in folders)]
        if not absent:
            return
        with nights(self._lines.files(_midnight(every[0]) - DAY, _midnight(absent[-1])), self._folder) as asked:
            for night in absent:
                self._write_night(asked, night, night in weeks.values())

    def _write_night(self, asked: Nights, night: date, whole: bool) -> None:
        import pyarrow as pa

        midnight = _midnight(night)
        known = {"origin": self._origin, "lines": self._held.before(night)}
        stats = asked.stats(midnight, self._declared)
        popular = asked.popular(stats)
        together = pa.concat_tables([popular, asked.together(midnight).cast(popular.schema)]) if whole else popular
        # As of the newest line that is in it: who knows the lines up to there knows this.
        newest = asked.newest(midnight)
        for view, table in ((self._declared.together, together), (self._declared.stats, stats)):
            rows = self._rows(view, table, "item", np.full(table.num_rows, newest))
            self._write(view, day_file(self._views[view], night), rows, known)

    def _valid(self, path: Path, day: date) -> bool:
        known = made_from(path)
        return known.get("origin") == self._origin and known.get("lines") == self._held.before(day)

    def write_histories(self, first: date, last: date) -> None:
        """Every entity's rows from one day to another, and its newest before, from the first day on that is not."""
        view = self._views[self._declared.history]
        base = self._base(view, first)
        if base is None:
            base = first
            self._write_base(view, first)
        stale = [day for day in _days(base, last) if not self._holds(day_file(view, day), day)]
        if stale:
            self._write_days(view, stale[0], last)
        for path in view.glob("*.parquet"):
            another = path.stem.startswith(BASE) and path.stem != f"{BASE}{base}"
            if another or path.stem.removeprefix(BASE) < str(base):
                path.unlink()

    def _base(self, view: Path, first: date) -> date | None:
        """The day before which the newest rows are kept, if they are those of the lines and early enough."""
        for path in sorted(view.glob(f"{BASE}*.parquet"), reverse=True):
            day = date.fromisoformat(path.stem.removeprefix(BASE))
            if first - timedelta(days=KEPT_DAYS) <= day <= first and self._valid(path, day):
                return day
        return None

    def _holds(self, path: Path, day: date) -> bool:
        # A day goes on from the days before: it is of all lines up to its end.
        return self._valid(path, day + DAY)

    def _write_base(self, view: Path, day: date) -> None:
        import pyarrow.parquet as pq

        baskets = self._lines.baskets(_midnight(min(self._held.days)), _midnight(day))
        known = {"origin": self._origin, "lines": self._held.before(day)}
        with replacing(view / f"{BASE}{day}.parquet") as temporary:
            schema = self._schema(self._declared.history, known)
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                for part in _parts(baskets):
                    table = histories(part, None, 0, newest_only=True)
                    rows = self._rows(self._declared.history, table, "entity", table["at"].to_numpy())
                    writer.write_table(rows.replace_schema_metadata(schema.metadata))
                    self.rows += rows.num_rows
        self.written += 1

    def _write_days(self, view: Path, first: date, last: date) -> None:
        """The rows of each day; those of an entity go on from its newest before the first day."""
        import pyarrow as pa
        import pyarrow.compute as pc

        start, end = _midnight(first), _midnight(last + DAY)
        baskets = self._lines.baskets(start, end)
        before = self._before(view, first, baskets.entities)
        if before.num_rows:
            earlier = pc.unique(before["bought_items"].combine_chunks().flatten()).to_pylist()
            baskets = self._lines.baskets(start, end, earlier)
        made = [
            histories(part, before.filter(pc.is_in(before["entity"], pa.array(part.entities))), micros_of(start))
            for part in _parts(baskets)
        ]
        table = pa.concat_tables(made) if made else None
        for day in _days(first, last):
            known = {"origin": self._origin, "lines": self._held.before(day + DAY)}
            path = day_file(view, day)
            if table is None:
                self._write(view.name, path, self._schema(view.name, known).empty_table(), known)
                continue
            at = table["at"].to_numpy()
            mine = table.filter(pa.array((at >= micros_of(_midnight(day))) & (at < micros_of(_midnight(day + DAY)))))
            rows = self._rows(view.name, mine, "entity", mine["at"].to_numpy())
            self._write(view.name, path, rows, known)

    def _before(self, view: Path, day: date, entities: list[str]) -> pa.Table:
        """The newest row of some entities before a day: `entity` and the columns of `HISTORY`."""
        import duckdb
        import pyarrow as pa

        names = [str(path) for path in view.glob("*.parquet") if path.stem.removeprefix(BASE) < str(day)]
        names += [str(path) for path in view.glob(f"{BASE}{day}.parquet")]
        key, columns = f'"{self._pipeline.entity}"', ", ".join(f'"{name}"' for name in HISTORY)
        with duckdb.connect(":memory:") as connection:
            connection.register("asked", pa.table({"entity": pa.array(entities, pa.string())}))
            found: Any = connection.sql(
                f"SELECT {key} AS entity, {columns} FROM {relation(names)} "  # noqa: S608 - columns of our own
                f"WHERE {key} IN (SELECT entity FROM asked) QUALIFY row_number() OVER "
                f"(PARTITION BY {key} ORDER BY {EVENT_TIMESTAMP} DESC, {CREATED_TIMESTAMP} DESC) = 1"
            ).to_arrow_table()
        return found.cast(schema_of(pa.string()).remove(1))

    def _rows(self, view: str, table: pa.Table, key: str, moments: np.ndarray[Any, Any]) -> pa.Table:
        """A table as the view's files have it, in the order of time and key."""
        import pyarrow as pa

        stamp = pa.timestamp("us", tz="UTC")
        created = pa.repeat(pa.scalar(self._known_at, stamp), table.num_rows)
        times = pa.array(moments, pa.int64()).view(stamp)
        arrays = [table[key], times, created, *(table[name] for name in self._columns[view])]
        found = pa.table(
            [column.cast(field.type) for column, field in zip(arrays, self._schema(view, {}), strict=True)],
            schema=self._schema(view, {}),
        )
        name = found.column_names[0]
        return found.sort_by([(EVENT_TIMESTAMP, "ascending"), (name, "ascending")])

    def _schema(self, view: str, known: Mapping[str, Any]) -> pa.Schema:
        import pyarrow as pa

        stamp = pa.timestamp("us", tz="UTC")
        key = self._pipeline.entity if view == self._declared.history else self._declared.item
        whole = view == self._declared.history and self._pipeline.partitions.key_type is int
        fields = [
            pa.field(key, pa.int64() if whole else pa.string(), nullable=False),
            pa.field(EVENT_TIMESTAMP, stamp, nullable=False),
            pa.field(CREATED_TIMESTAMP, stamp, nullable=False),
            *(pa.field(name, arrow_type(kind)) for name, kind in self._columns[view].items()),
        ]
        return pa.schema(fields, metadata={MADE_FROM: json.dumps(known)})

    def _write(self, view: str, path: Path, table: pa.Table, known: Mapping[str, Any]) -> None:
        import pyarrow.parquet as pq

        with replacing(path) as temporary:
            pq.write_table(
                table.replace_schema_metadata(self._schema(view, known).metadata), temporary, compression="zstd"
            )
        self.written += 1
        self.rows += table.num_rows


def _parts(baskets: Baskets) -> Iterable[Baskets]:
    """The baskets of some entities at a time, each with these entities alone."""
    for first in range(0, len(baskets.entities), ENTITIES_AT_ONCE):
        until = min(first + ENTITIES_AT_ONCE, len(baskets.entities))
        part = baskets.part(first, until)
        own = part.entity - first
        yield Baskets(
            baskets.entities[first:until],
            part.items,
            own,
            part.item,
            part.at,
            part.event,
            part.quantity,
            part.price,
        )


def _first_of(span: int, nights: Iterable[date]) -> dict[int, date]:
    """The first night of each span of so many days, by the number of the span."""
    return {night.toordinal() // span: night for night in sorted(nights, reverse=True)}


def _days(first: date, last: date) -> list[date]:
    return [first + number * DAY for number in range((last - first).days + 1)]


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
