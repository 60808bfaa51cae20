"""Offline features of interactions: night by night they are those of one go, and events are folded in once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from almanac.clock import DAY, at_micros, micros_of, utc_now
from almanac.errors import DeclarationError, SourceError
from almanac.interactions import Simulated
from almanac.pipeline import Interactions, Pipeline
from almanac.ranking_declared import ANY_ITEM
from almanac.settings import Settings, load_settings
from features.archive import Archive, Archived
from features.archive_lines import EVENTS, archived_lines, event_columns
from features.ingest import reach, refresh
from features.interactions import ingest as ingest_interactions
from features.interactions.fold import Event, advance
from features.interactions.history import HISTORY, SEEN_MAX, STATS, TOGETHER
from features.interactions.lines import Lines
from features.layout import EVENT_TIMESTAMP
from features.sources.lines import open_lines
from pipelines.shop import shop

BEGINS = date(2026, 3, 1)
THIRD = datetime(2026, 3, 20, 3, tzinfo=UTC)
assert isinstance(shop.source, Interactions)
SMALL = replace(
    shop,
    source=replace(shop.source, simulated=Simulated(entities=60, items=40, history=19 * DAY, lines_per_entity=20.0)),
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = load_settings(state_dir=tmp_path, source_data="", source_seed=7)
    open_lines(SMALL, found, now=datetime(BEGINS.year, BEGINS.month, BEGINS.day, tzinfo=UTC) + 19 * DAY)
    return found


def rows_of(settings: Settings, view: str) -> list[dict[str, Any]]:
    """All rows of a view, without when they were written, in the order of time and key."""
    table = pa.concat_tables(
        [pq.ParquetFile(path).read() for path in sorted((settings.features_dir / "shop" / view).glob("*.parquet"))]
    ).drop_columns(["created_timestamp"])
    return sorted(table.to_pylist(), key=lambda row: (row[EVENT_TIMESTAMP], row[table.column_names[0]]))


def everything(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    return {view: rows_of(settings, view) for view in ("customer_history", "item_stats", "item_together")}


def newest(settings: Settings) -> dict[str, dict[str, Any]]:
    """The newest history of each customer."""
    return {row["customer_id"]: row for row in rows_of(settings, "customer_history")}


def folded(events: Sequence[Event]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for event in sorted(events, key=lambda event: (event.at, event.hash)):
        found[event.entity] = advance(found.get(event.entity), event).row
    return found


def events_of(settings: Settings, until: datetime, pipeline: Pipeline = SMALL) -> list[Event]:
    """The source's baskets up to a moment, included."""
    source = open_lines(pipeline, settings)
    held: dict[tuple[str, int], list[tuple[str, float, float]]] = {}
    for row in source.lines(source.earliest, until + timedelta(microseconds=1)).to_pylist():
        at = micros_of(row["at"])
        held.setdefault((row["entity"], at), []).append((row["item"], row["quantity"], row["price"]))
    return [Event(entity=entity, at=at, lines=tuple(lines)) for (entity, at), lines in held.items()]


def archived(settings: Settings, events: Sequence[Event], first: int = 0) -> None:
    """The stream's archive has these events."""
    archive = Archive(
        settings.features_dir / "shop" / EVENTS / "archive", {"customer_id": pa.string(), **event_columns()}
    )
    archive.write(
        [
            Archived(
                row={
                    "customer_id": event.entity,
                    EVENT_TIMESTAMP: at_micros(event.at),
                    **archived_lines(event.lines),
                },
                topic="shop.purchases",
                partition=0,
                offset=first + number,
            )
            for number, event in enumerate(events)
        ],
        THIRD,
    )


def micros(moment: datetime) -> int:
    return micros_of(moment)


def test_the_newest_rows_are_the_fold_of_all_events(settings: Settings) -> None:
    found = refresh(SMALL, settings, THIRD, window=2 * DAY)
    events = events_of(settings, THIRD)
    assert micros(found.as_of) == max(event.at for event in events)
    assert {key: {name: row[name] for name in HISTORY} for key, row in newest(settings).items()} == folded(events)
    assert all(micros(row[EVENT_TIMESTAMP]) == max(row["seen_at"]) for row in newest(settings).values())
    again = refresh(SMALL, settings, THIRD, window=2 * DAY)
    assert (again.hours_written, again.rows, again.as_of) == (0, 0, found.as_of)
    assert reach(SMALL, settings, THIRD) == found.as_of


def test_night_by_night_gives_the_rows_of_one_go(settings: Settings, tmp_path: Path) -> None:
    for night in (THIRD - 3 * DAY, THIRD - 2 * DAY, THIRD):
        refresh(SMALL, settings, night, window=timedelta(0) if night < THIRD else 3 * DAY)
    by_night = everything(settings)
    other = load_settings(state_dir=tmp_path / "other", source_data="", source_seed=7)
    open_lines(SMALL, other, now=datetime(2026, 3, 20, tzinfo=UTC))
    refresh(SMALL, other, THIRD, window=3 * DAY)
    at_once = everything(other)
    assert by_night["customer_history"] == at_once["customer_history"]
    for view in ("item_stats", "item_together"):  # an earlier night said what went together, too
        assert [row for row in by_night[view] if row in at_once[view]] == at_once[view]


def test_items_may_be_said_anew_once_a_week(settings: Settings) -> None:
    refresh(SMALL, settings, THIRD, window=7 * DAY)
    nightly = everything(settings)
    weekly = replace(SMALL, source=replace(SMALL.source, items_every=7 * DAY))
    refresh(weekly, settings, THIRD, window=7 * DAY)
    nights = ["2026-03-08", "2026-03-15"]  # the first of each week that the window is in
    for view in ("item_stats", "item_together"):
        assert sorted(path.stem for path in (settings.features_dir / "shop" / view).glob("*.parquet")) == nights
        assert [row for row in nightly[view] if row in rows_of(settings, view)] == rows_of(settings, view)
    assert everything(settings)["customer_history"] == nightly["customer_history"]
    with pytest.raises(DeclarationError, match="1 to 31 whole days"):
        replace(SMALL.source, items_every=DAY / 2)


def test_an_earlier_window_brings_earlier_rows_and_the_same_newest(settings: Settings) -> None:
    refresh(SMALL, settings, THIRD, window=timedelta(0))
    few, known = rows_of(settings, "customer_history"), newest(settings)
    refresh(SMALL, settings, THIRD, window=12 * DAY)
    more = rows_of(settings, "customer_history")
    assert len(more) > len(few)
    assert newest(settings) == known
    moments = {(row["customer_id"], row[EVENT_TIMESTAMP]) for row in more}
    assert len(moments) == len(more), "a moment of a customer stands twice"


def test_a_run_for_the_past_sees_no_later_line(settings: Settings) -> None:
    early = refresh(SMALL, settings, THIRD - 5 * DAY, window=DAY)
    assert early.as_of <= THIRD - 5 * DAY
    assert max(row[EVENT_TIMESTAMP] for row in rows_of(settings, "customer_history")) == early.as_of
    refresh(SMALL, settings, THIRD, window=6 * DAY)
    assert refresh(SMALL, settings, THIRD - 5 * DAY, window=DAY).as_of == early.as_of


def test_events_are_folded_in_once_wherever_they_also_come_from(settings: Settings) -> None:
    refresh(SMALL, settings, THIRD, window=2 * DAY)
    known = events_of(settings, THIRD)
    item = known[0].lines[0][0]
    new = Event(entity="stranger", at=micros(THIRD - timedelta(minutes=5)), lines=((item, 2.0, 1.5), (item, 1.0, 1.5)))
    late = Event(entity=known[0].entity, at=micros(THIRD - DAY), lines=(("A NEW ITEM", 1.0, 9.0),))
    back = Event(entity=known[0].entity, at=micros(THIRD - timedelta(hours=2)), lines=(("A NEW ITEM", -1.0, 9.0),))
    later = Event(entity="stranger", at=micros(THIRD + timedelta(minutes=1)), lines=((item, 1.0, 1.5),))
    archived(settings, [new, late, back, known[-1], later, new])
    found = refresh(SMALL, settings, THIRD, window=2 * DAY)
    assert micros(found.as_of) == new.at
    assert reach(SMALL, settings, THIRD) == found.as_of
    wanted = folded([*known, new, late, back])
    assert {key: {name: row[name] for name in HISTORY} for key, row in newest(settings).items()} == wanted
    stats = {row["item_id"]: row for row in rows_of(settings, "item_stats") if row[EVENT_TIMESTAMP].day == 19}
    assert stats["A NEW ITEM"]["sold_7d"] == 1.0  # the night before knew the late one, and no return is a sale
    assert refresh(SMALL, settings, THIRD, window=2 * DAY).hours_written == 0


def test_a_basket_that_came_as_several_events_of_its_moment_counts_once(settings: Settings) -> None:
    known = events_of(settings, THIRD)
    large = max(known, key=lambda event: len(event.lines))
    assert len(large.lines) > 2
    parts = [replace(large, lines=large.lines[:2]), replace(large, lines=(*large.lines[2:], ("A NEW ITEM", 1.0, 9.0)))]
    archived(settings, parts)
    refresh(SMALL, settings, THIRD, window=2 * DAY)
    new = replace(large, lines=(("A NEW ITEM", 1.0, 9.0),))
    found, wanted = newest(settings)[large.entity], folded([*known, new])[large.entity]
    assert found["orders"] == wanted["orders"]
    assert sorted(found["bought_items"]) == sorted(wanted["bought_items"])
    counts = dict(zip(found["bought_items"], found["bought_counts"], strict=True))
    assert counts == dict(zip(wanted["bought_items"], wanted["bought_counts"], strict=True))


def test_what_was_archived_as_any_item_does_not_become_what_is_popular(settings: Settings) -> None:
    lines = ((ANY_ITEM, 1.0, 1.0), ("ELSE", 1.0, 1.0))
    archived(settings, [Event(entity=f"e{n}", at=micros(THIRD - DAY) + n, lines=lines) for n in range(3)])
    refresh(SMALL, settings, THIRD, window=2 * DAY)
    rows = [row for row in rows_of(settings, "item_together") if row["item_id"] == ANY_ITEM]
    assert len({row[EVENT_TIMESTAMP] for row in rows}) == len(rows)
    assert all(len(row["together_items"]) > 1 for row in rows)
    assert not [row for row in rows_of(settings, "item_stats") if row["item_id"] == ANY_ITEM]


def test_an_event_older_than_all_that_a_history_remembers_is_folded_in_where_it_belongs(settings: Settings) -> None:
    """What the stream cannot fold in any more, and archives: lines are all there, whatever a history remembers."""
    often = [
        Event(entity="often", at=micros(THIRD - timedelta(minutes=100 - n)), lines=(("AN ITEM", 1.0, 1.0),))
        for n in range(SEEN_MAX + 6)
    ]
    archived(settings, often)
    refresh(SMALL, settings, THIRD, window=2 * DAY)
    late = Event(entity="often", at=micros(THIRD - timedelta(hours=3)), lines=(("ANOTHER", 2.0, 1.5),))
    before = {name: value for name, value in newest(settings)["often"].items() if name in HISTORY}
    assert not advance(before, late).folded
    archived(settings, [late, late], first=len(often))
    refresh(SMALL, settings, THIRD, window=2 * DAY)
    found = newest(settings)["often"]
    assert {name: found[name] for name in HISTORY} == folded([*often, late])["often"]
    assert found["orders"] == len(often) + 1


def test_what_events_brought_stays_when_the_source_becomes_another(settings: Settings) -> None:
    event = Event(entity="stranger", at=micros(THIRD - timedelta(minutes=5)), lines=(("BELL", 2.0, 1.5),))
    archived(settings, [event])
    refresh(SMALL, settings, THIRD, window=DAY)
    for path in (settings.features_dir / "shop" / EVENTS).rglob("*.parquet"):
        path.unlink()  # kept for some weeks alone
    other = settings.model_copy(update={"source_seed": 8})
    refresh(SMALL, other, THIRD, window=DAY)
    found = newest(other)
    assert {name: found["stranger"][name] for name in HISTORY} == folded([event])["stranger"]
    assert set(found) - {"stranger"} == {event.entity for event in events_of(other, THIRD)}


def test_items_are_what_the_lines_before_midnight_say(settings: Settings) -> None:
    refresh(SMALL, settings, THIRD, window=timedelta(0))
    midnight = datetime(2026, 3, 20, tzinfo=UTC)
    before = [event for event in events_of(settings, THIRD) if event.at < micros(midnight)]
    last = max(event.at for event in before)
    stats = {row["item_id"]: row for row in rows_of(settings, "item_stats") if micros(row[EVENT_TIMESTAMP]) == last}
    assert set(stats) == {line[0] for event in before for line in event.lines}
    for item, row in stats.items():
        mine = [event for event in before if item in {line[0] for line in event.lines}]
        week = [event for event in mine if event.at >= micros(midnight - 7 * DAY)]
        assert (row["sold_7d"], row["sold_90d"]) == (len(week), len(mine))
        assert row["buyers_30d"] == len({event.entity for event in mine})
        assert row["available"] == 1.0
        recent = max(mine, key=lambda event: event.at)
        assert row["price"] == pytest.approx(max(line[2] for line in recent.lines if line[0] == item))
        assert row["days_since_sold"] == pytest.approx((micros(midnight) - recent.at) / 86_400_000_000, rel=1e-5)
        assert set(row) == {"item_id", EVENT_TIMESTAMP, *STATS}
    popular = [row for row in rows_of(settings, "item_together") if row["item_id"] == ANY_ITEM][-1]
    assert set(popular) == {"item_id", EVENT_TIMESTAMP, *TOGETHER}
    order = sorted(stats, key=lambda item: (-stats[item]["buyers_30d"], -stats[item]["sold_30d"], item))
    assert popular["together_items"] == order[:100]
    assert popular["together_weights"] == sorted(popular["together_weights"], reverse=True)


def test_an_item_that_nobody_takes_any_more_has_left_the_range(settings: Settings) -> None:
    assert isinstance(SMALL.source, Interactions)
    brief = replace(SMALL, source=replace(SMALL.source, available_for=2 * DAY))
    refresh(brief, settings, THIRD, window=timedelta(0))
    rows = [row for row in rows_of(settings, "item_stats") if row[EVENT_TIMESTAMP].day == 19]
    assert {row["available"] for row in rows} == {0.0, 1.0}
    assert all(row["available"] == float(row["days_since_sold"] <= 2) for row in rows)
    gone = {row["item_id"] for row in rows if not row["available"]}
    popular = [row for row in rows_of(settings, "item_together") if row["item_id"] == ANY_ITEM][-1]
    assert not gone & set(popular["together_items"])


def test_items_go_together_that_share_baskets(settings: Settings) -> None:
    pairs = [("LEFT", "RIGHT"), ("LEFT", "RIGHT", "LAMP"), ("LEFT", "LAMP"), ("RIGHT",), ("LEFT", "RIGHT")]
    archived(
        settings,
        [
            Event(entity=f"e{n}", at=micros(THIRD - DAY) + n, lines=tuple((item, 1.0, 1.0) for item in basket))
            for n, basket in enumerate(pairs)
        ],
    )
    beginning = THIRD - timedelta(days=THIRD.date().toordinal() % 7)
    refresh(SMALL, settings, beginning + 7 * DAY, window=timedelta(0))
    found = {row["item_id"]: row for row in rows_of(settings, "item_together")}
    assert found["LEFT"]["together_items"] == ["RIGHT", "LAMP"]
    assert found["LEFT"]["together_weights"] == pytest.approx([3 / (4 * 3) ** 0.5, 2 / (4 * 2) ** 0.5])
    assert found["RIGHT"]["together_items"] == ["LEFT"]  # one basket with the lamp is none


def test_rows_are_as_old_as_what_was_known_of_events(settings: Settings) -> None:
    before = utc_now()
    refresh(SMALL, settings, THIRD, window=timedelta(0))
    for path in (settings.features_dir / "shop" / "customer_history").glob("*.parquet"):
        for created in pq.ParquetFile(path).read()["created_timestamp"].to_pylist():
            assert created <= before  # a row that the stream wrote since may know more


def test_too_early_a_time_is_refused(settings: Settings) -> None:
    with pytest.raises(SourceError, match="need the lines of a whole day"):
        refresh(SMALL, settings, datetime(2026, 3, 1, 20, tzinfo=UTC), window=DAY)
    with pytest.raises(SourceError, match="has nothing at or before"):
        refresh(SMALL, settings, datetime(2026, 2, 1, tzinfo=UTC), window=DAY)


def test_a_death_in_between_leaves_whole_files_and_the_next_run_mends(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(Exception):
        """The process ends here."""

    written = ingest_interactions._Files._write
    calls = 0

    def dies(self: Any, *given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Died
        written(self, *given)

    monkeypatch.setattr(ingest_interactions._Files, "_write", dies)
    with pytest.raises(Died):
        refresh(SMALL, settings, THIRD, window=2 * DAY)
    monkeypatch.undo()
    refresh(SMALL, settings, THIRD, window=2 * DAY)
    known = events_of(settings, THIRD)
    assert {key: {name: row[name] for name in HISTORY} for key, row in newest(settings).items()} == folded(known)
    # An event that comes late changes its day and all after it: not one of them may count as done too early.
    late = Event(entity=known[0].entity, at=micros(THIRD - 36 * DAY / 24), lines=(("A NEW ITEM", 1.0, 9.0),))
    archived(settings, [late])
    calls = -2
    monkeypatch.setattr(ingest_interactions._Files, "_write", dies)
    with pytest.raises(Died):
        refresh(SMALL, settings, THIRD, window=2 * DAY)
    monkeypatch.undo()
    refresh(SMALL, settings, THIRD, window=2 * DAY)
    wanted = folded([*known, late])
    assert {key: {name: row[name] for name in HISTORY} for key, row in newest(settings).items()} == wanted


def test_what_was_long_before_is_taken_together(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    refresh(SMALL, settings, THIRD - 12 * DAY, window=timedelta(0))
    monkeypatch.setattr(ingest_interactions, "KEPT_DAYS", 5)
    refresh(SMALL, settings, THIRD, window=DAY)
    folder = settings.features_dir / "shop" / "customer_history"
    assert sorted(path.stem for path in folder.glob("*.parquet")) == ["2026-03-19", "before-2026-03-19"]
    assert {key: {name: row[name] for name in HISTORY} for key, row in newest(settings).items()} == folded(
        events_of(settings, THIRD)
    )


def test_entities_are_taken_some_at_a_time(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    refresh(SMALL, settings, THIRD, window=2 * DAY)
    wanted = everything(settings)
    for path in (settings.features_dir / "shop").rglob("*.parquet"):
        path.unlink()
    monkeypatch.setattr(ingest_interactions, "ENTITIES_AT_ONCE", 7)
    refresh(SMALL, settings, THIRD, window=2 * DAY)
    assert everything(settings) == wanted


def test_lines_lie_in_months_in_the_order_of_time(settings: Settings) -> None:
    refresh(SMALL, settings, THIRD, window=timedelta(0))
    lines = Lines(settings.features_dir / "shop")
    (path,) = lines.files(THIRD - 30 * DAY, THIRD)
    held = pq.ParquetFile(path).read()
    assert held["at"].to_pylist() == sorted(held["at"].to_pylist())
    assert len(held) == sum(len(event.lines) for event in events_of(settings, THIRD))
    baskets = lines.baskets(THIRD - 3 * DAY, THIRD, ["AAA"])
    assert baskets.items[0] == "AAA"
    assert baskets.at.min() >= micros(THIRD - 3 * DAY)
