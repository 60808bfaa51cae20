"""Gates of lines: each row that cannot be believed is set aside with one reason, and the counts add up."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac.errors import DeclarationError, SourceError
from almanac.pipeline import Interactions, Pipeline
from almanac.settings import load_settings
from features.cli import described_source
from features.sources.gates import REASONS, normalised, pass_gates
from features.sources.lines import open_lines
from pipelines.shop import shop
from pipelines.weather import weather

REAL = Path(os.environ.get("ALMANAC_DATA", "")) / "online-retail.parquet"
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
GOOD = {"who": "17850", "what": b"WHITE METAL LANTERN", "count": 6.0, "price": 3.39, "at": NOON}

FAR = pa.array([2**62, 0, 0]).cast(pa.timestamp("ms"))
DIRTY: list[tuple[str | None, dict[str, Any]]] = [
    (None, {}),
    ("duplicate", {}),
    ("duplicate", {"what": b"  white metal  lantern "}),
    (None, {"count": 7.0}),
    ("no-time", {"at": None}),
    ("too-early", {"at": datetime(2009, 12, 31, 23, 59, tzinfo=UTC)}),
    ("too-late", {"at": NOON + timedelta(seconds=1)}),
    ("too-late", {"at": datetime(2286, 1, 1, tzinfo=UTC)}),
    ("no-item", {"what": None}),
    ("no-item", {"what": b" \t "}),
    ("unreadable-item", {"what": "WEIßER TOPF".encode("latin-1")}),
    ("unreadable-item", {"what": b"BELL\x07"}),
    ("unreadable-item", {"what": b"X" * 300}),
    (None, {"what": "Café crème £5".encode()}),
    ("no-entity", {"who": None}),
    ("no-entity", {"who": " "}),
    ("bad-entity", {"who": "a\0b"}),
    ("bad-entity", {"who": "1\n2"}),
    ("bad-entity", {"who": "x" * 257}),
    (None, {"who": "'; DROP TABLE customers; --"}),
    ("not-a-number", {"price": float("nan")}),
    ("not-a-number", {"price": None}),
    ("not-a-number", {"count": float("inf")}),
    ("return", {"count": -6.0}),
    ("bad-quantity", {"count": 0.0}),
    ("bad-quantity", {"count": 1e9}),
    ("free", {"price": 0.0}),
    ("free", {"price": -11062.06}),
    ("bad-price", {"price": 1e9}),
    ("not-an-item", {"what": b"Postage"}),
    ("not-an-item", {"what": b"*"}),
]
"""What is wrong with a row, and the reason it is set aside for."""


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    held = [{**GOOD, **row} for row in rows]
    return pa.table(
        {
            "entity": pa.chunked_array([pa.array([row["who"] for row in held], pa.string())]),
            "item": pa.chunked_array([pa.array([row["what"] for row in held], pa.binary())]),
            "quantity": pa.chunked_array([pa.array([row["count"] for row in held], pa.float64())]),
            "price": pa.chunked_array([pa.array([row["price"] for row in held], pa.float64())]),
            "at": pa.chunked_array([pa.array([row["at"] for row in held], pa.timestamp("us", tz="UTC"))]),
        }
    )


def declared() -> Interactions:
    assert isinstance(shop.source, Interactions)
    return shop.source


def test_each_row_has_one_fate_and_the_counts_add_up() -> None:
    found = pass_gates(table_of([row for _, row in DIRTY]), declared(), shop.partitions, NOON)
    names = list(REASONS)
    reasons = [None if place < 0 else names[place] for place in found.reasons.tolist()]
    assert reasons == [reason for reason, _ in DIRTY]
    assert sum(found.counts.values()) + found.lines.num_rows == len(DIRTY)
    assert set(found.counts) == set(REASONS)
    assert {*found.lines["item"].to_pylist()} == {"WHITE METAL LANTERN", "CAFÉ CRÈME £5"}
    assert all(reason in {r for r, _ in DIRTY} for reason in REASONS), "a reason that no row here has"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(range(len(DIRTY))), min_size=1, max_size=30))
def test_counts_add_up_whatever_comes_in_whichever_order(chosen: list[int]) -> None:
    found = pass_gates(table_of([DIRTY[at][1] for at in chosen]), declared(), shop.partitions, NOON)
    assert sum(found.counts.values()) + found.lines.num_rows == len(chosen)
    assert found.lines["at"].to_pylist() == sorted(found.lines["at"].to_pylist())
    assert len({*map(str, found.lines.to_pylist())}) == found.lines.num_rows


@given(st.one_of(st.text(), st.binary()))
def test_the_key_of_an_item_is_its_own_key(value: str | bytes) -> None:
    once = normalised(value)
    assert once is None or once == normalised(once)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file of purchases of the winter and the summer, with times that name no zone, and numbers as identifiers."""
    times = [datetime(2011, 1, 10, 9), datetime(2011, 7, 10, 9), datetime(2011, 7, 10, 10)]  # noqa: DTZ001
    table = pa.table(
        {
            "CustomerID": pa.array([17850.0, 17850.5, 13047.0]),
            "Description": pa.array(["Lantern", "Lantern", "Bell"]),
            "Quantity": pa.array([6, 1, 2], pa.int32()),
            "UnitPrice": pa.array([2.5, 1.0, 3.0]),
            "InvoiceDate": pa.array(times, pa.timestamp("ns")),
            "Country": pa.array(["United Kingdom"] * 3),
        }
    )
    pq.write_table(table, tmp_path / "purchases.parquet")
    return tmp_path / "purchases.parquet"


def opened(tmp_path: Path, path: Path, pipeline: Pipeline = shop, now: datetime = NOON) -> Any:
    settings = load_settings(state_dir=tmp_path / "state", source_data=f"shop={path}")
    return open_lines(pipeline, settings, now=now)


def test_a_file_is_replayed_up_to_now_with_its_zone_and_whole_days(tmp_path: Path, written: Path) -> None:
    source = opened(tmp_path, written)
    lines = source.lines(source.earliest, NOON + timedelta(hours=1))
    assert lines["entity"].to_pylist() == ["17850", "13047"]
    winter, summer = (moment.astimezone(UTC) - source.clock_shift for moment in lines["at"].to_pylist())
    assert (winter.hour, summer.hour) == (9, 9)  # ten o'clock in British summer is nine in UTC
    assert source.clock_shift % timedelta(days=1) == timedelta(0)
    assert timedelta(0) <= NOON - source.latest(NOON) < timedelta(days=1)
    later = opened(tmp_path, written, now=NOON + timedelta(days=9))
    assert later.clock_shift == source.clock_shift
    assert source.kept_aside().to_pylist()[0]["reason"] == "bad-entity"
    assert "replayed with the clock shifted" in source.describe()
    with pytest.raises(SourceError, match="has nothing at or before"):
        source.latest(NOON - timedelta(days=400))


def test_a_price_in_decimals_is_the_number_that_an_event_with_it_has(tmp_path: Path, written: Path) -> None:
    prices = pa.array([Decimal(price) for price in ("0.35", "1.00", "0.41")], pa.decimal128(18, 2))
    pq.write_table(pq.read_table(written).set_column(3, "UnitPrice", prices), written)
    source = opened(tmp_path, written)
    assert source.lines(source.earliest, NOON)["price"].to_pylist() == json.loads("[0.35, 0.41]")


def test_what_was_set_aside_is_printed_and_kept_for_whoever_looks(
    tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALMANAC_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("ALMANAC_SOURCE_DATA", f"shop={written}")
    found = described_source(shop, load_settings())
    assert (found["rows"], found["lines"], found["set_aside"]["bad-entity"]) == (3, 2, 1)
    (row,) = pq.ParquetFile(Path(found["kept"]) / "rows.parquet").read().to_pylist()
    assert (row["CustomerID"], row["reason"]) == (17850.5, "bad-entity")
    assert json.loads((Path(found["kept"]) / "counts.json").read_text())["set_aside"] == found["set_aside"]
    monkeypatch.setenv("ALMANAC_SOURCE_DATA", "")
    assert described_source(shop, load_settings())["rows"] is None
    assert "simulated atmosphere" in described_source(weather, load_settings())["source"]
    with pytest.raises(DeclarationError, match="declares no source"):
        described_source(replace(shop, source=None), load_settings())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop_columns(["UnitPrice"]), "has no column UnitPrice"),
        (lambda t: t.set_column(2, "Quantity", pa.array(["six"] * 3)), "Quantity is string: give numbers"),
        (lambda t: t.set_column(4, "InvoiceDate", pa.array(["May"] * 3)), "InvoiceDate is string: give timestamps"),
        (lambda t: t.append_column("UnitPrice", t["UnitPrice"]), "has more than one column UnitPrice"),
        (lambda t: t.set_column(0, "CustomerID", pa.array([[1]] * 3)), "CustomerID is list.*: give text or numbers"),
        (lambda t: t.set_column(1, "Description", pa.array([{"a": 1}] * 3)), "Description is struct.*: give text"),
        (lambda t: t.set_column(4, "InvoiceDate", FAR), "InvoiceDate holds times that no calendar has"),
        (lambda t: t.slice(1, 1), "none of 1 rows can be used .1 bad-entity."),
        (lambda t: t.slice(0, 0), "none of 0 rows can be used .nothing."),
    ],
)
def test_a_file_that_cannot_be_used_is_said_in_one_line(tmp_path: Path, written: Path, change: Any, said: str) -> None:
    pq.write_table(change(pq.read_table(written)), written)
    with pytest.raises(SourceError, match=said) as caught:
        opened(tmp_path, written)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="correct ALMANAC_SOURCE_DATA"):
        opened(tmp_path, tmp_path / "none.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(SourceError, match="is not a whole Parquet file"):
        opened(tmp_path, tmp_path / "torn.parquet")
    with pytest.raises(DeclarationError, match="declares no source of interactions"):
        opened(tmp_path, tmp_path / "none.parquet", replace(shop, source=None))


@pytest.mark.skipif(not REAL.is_file(), reason="ALMANAC_DATA names no folder with online-retail.parquet")
def test_the_real_purchases_are_counted_to_the_last_row(tmp_path: Path) -> None:
    source = opened(tmp_path, REAL)
    assert source.rows == 541_909
    aside = dict(source.set_aside)
    held = source.lines(source.earliest, NOON + timedelta(days=1)).num_rows
    assert held + sum(aside.values()) == source.rows
    assert aside["no-item"] + aside["no-entity"] == 135_080  # no description comes with no customer
    assert aside["return"] == 8_905
    assert aside["free"] == 40
