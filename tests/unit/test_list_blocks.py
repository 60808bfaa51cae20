"""The block codec of lists: what goes in comes out, equal lists give equal bytes, and no damage goes unnoticed."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac import block_layout, list_blocks
from almanac.blocks import Block, block_hash, decode, encode
from almanac.errors import BlockError
from almanac.list_blocks import ListBlock, decode_lists, encode_lists, unpacked
from almanac.ranked import RankedList
from tests.unit.test_blocks import INT_KEYS, TEXT_KEYS

ITEMS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=9),
    unique=True,
    max_size=12,
).map(lambda items: sorted(items, key=str.encode))
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def some_lists(draw: st.DrawFn) -> tuple[ListBlock, dict[Any, RankedList]]:
    """A block, and the lists that it was made of."""
    keys = draw(INT_KEYS | TEXT_KEYS)
    items = draw(ITEMS)
    attributes = {name: [draw(NUMBERS) for _ in items] for name in draw(st.sampled_from([(), ("price",), ("a", "b")]))}
    lists: dict[Any, RankedList] = {}
    chosen: list[list[int]] = []
    for key in keys.tolist():
        places = draw(st.permutations(range(len(items)))) if items else []
        chosen.append(places[: draw(st.integers(0, len(items)))])
        scores = tuple(
            sorted(draw(st.lists(NUMBERS, min_size=len(chosen[-1]), max_size=len(chosen[-1]))), reverse=True)
        )
        lists[key] = RankedList(
            tuple(items[place] for place in chosen[-1]),
            scores,
            {name: tuple(values[place] for place in chosen[-1]) for name, values in attributes.items()},
        )
    block = ListBlock.of(
        keys,
        np.cumsum([0, *map(len, chosen)]),
        np.array([item.encode() for item in items], dtype="S64"),
        {name: np.array(values, dtype=np.float32) for name, values in attributes.items()},
        np.array([place for places in chosen for place in places], dtype=np.int64),
        np.array([score for found in lists.values() for score in found.scores], dtype=np.float32),
    )
    return block, lists


@settings(max_examples=40)
@given(some_lists())
def test_lists_come_back_as_written(given_lists: tuple[ListBlock, dict[Any, RankedList]]) -> None:
    block, lists = given_lists
    data = encode_lists(block)
    back = decode_lists(data)
    assert isinstance(unpacked(data), ListBlock)
    for key, expected in lists.items():
        assert back.row(key.decode() if isinstance(key, bytes) else key) == expected
    assert encode_lists(back) == data
    assert set(back.items.tolist()) == {item.encode() for found in lists.values() for item in found.items}


@settings(max_examples=40)
@given(some_lists(), st.data())
def test_any_changed_byte_is_noticed(given_lists: tuple[ListBlock, Any], data: st.DataObject) -> None:
    whole = bytearray(encode_lists(given_lists[0]))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BlockError):
        unpacked(bytes(whole))


@settings(max_examples=40)
@given(some_lists(), st.data())
def test_any_truncation_or_growth_is_noticed(given_lists: tuple[ListBlock, Any], data: st.DataObject) -> None:
    whole = encode_lists(given_lists[0])
    cut = data.draw(st.integers(0, len(whole) - 1))
    for damaged in (whole[:cut], whole + whole[:1]):
        with pytest.raises(BlockError):
            unpacked(damaged)


@settings(max_examples=40)
@given(some_lists(), st.data())
def test_bytes_that_somebody_made_up_are_read_or_refused(
    given_lists: tuple[ListBlock, Any], data: st.DataObject
) -> None:
    """A right checksum over wrong contents: refused as a block, or as a list, and nothing else."""
    whole = bytearray(encode_lists(given_lists[0]))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    whole[16:20] = b"\0" * 4
    whole[16:20] = struct.pack("<I", block_layout.checksum(memoryview(whole)[:24], memoryview(whole)[24:]))
    try:
        found = unpacked(bytes(whole))
        for key in found.keys.tolist():
            found.row(key.decode(errors="replace") if isinstance(key, bytes) else key)
    except BlockError:
        return
    assert found.rows == len(found.keys)


def lists_of(**changes: Any) -> ListBlock:
    fields: dict[str, Any] = {
        "keys": np.array([b"ann", b"bob"]),
        "offsets": np.array([0, 2, 3]),
        "items": np.array([b"cup", b"mug"]),
        "attributes": {"price": np.array([2.5, 3.5], dtype=np.float32)},
        "places": np.array([1, 0, 1]),
        "scores": np.array([0.75, 0.5, 0.25], dtype=np.float32),
    }
    return ListBlock(**{**fields, **changes})


def test_equal_lists_have_one_name_whatever_they_were_made_of() -> None:
    wide = {
        "keys": np.array([b"ann", b"bob"], dtype="S200"),
        "items": np.array([b"ape", b"cup", b"mug", b"zoo"], dtype="S90"),
        "attributes": {"price": np.array([1, 2.5, 3.5, 9], dtype=np.float32)},
        "places": np.array([2, 1, 2], dtype=np.int32),
    }
    plain = lists_of()
    again = ListBlock.of(offsets=plain.offsets.astype(np.uint32), scores=plain.scores, **wide)  # type: ignore[arg-type]
    assert again.hash == plain.hash == block_hash(encode_lists(plain))
    assert lists_of(attributes={}).hash != plain.hash


def test_the_layout_of_version_2_is_what_is_stored() -> None:
    data = encode_lists(lists_of())
    assert data[:16] == b"ALMB\x02\x00\x03\x00\x02\x00\x00\x00\x01\x00\x05\x00"
    assert data[20:24] == struct.pack("<I", len(data))
    assert data[24:40] == struct.pack("<IIII", 2, 3, 3, 0)
    assert data[40:] == b"".join(
        part.ljust(-(-len(part) // 8) * 8, b"\0")
        for part in (
            b"price",
            b"annbob",
            struct.pack("<III", 0, 2, 3),
            b"cupmug",
            struct.pack("<ff", 2.5, 3.5),
            struct.pack("<HHH", 1, 0, 1),
            struct.pack("<fff", 0.75, 0.5, 0.25),
        )
    )


def test_decoding_copies_nothing() -> None:
    data = encode_lists(lists_of())
    back, raw = decode_lists(data), np.frombuffer(data, dtype=np.uint8)
    assert all(np.shares_memory(part, raw) for part in (back.keys, back.items, back.places, back.scores, back.offsets))


def test_each_version_has_its_reader() -> None:
    numbers = encode(Block(keys=np.arange(2), columns={"a": np.ones(2, dtype=np.float32)}))
    assert isinstance(unpacked(numbers), Block)
    with pytest.raises(BlockError, match="version 1"):
        decode_lists(numbers)
    with pytest.raises(BlockError, match="version 2"):
        decode(encode_lists(lists_of()))
    newer = bytearray(numbers)
    newer[4] = 3
    with pytest.raises(BlockError, match="version 3"):
        unpacked(bytes(newer))


def test_a_block_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_lists(lists_of())
    monkeypatch.setattr(list_blocks, "BLOCK_BYTES_MAX", 80)
    with pytest.raises(BlockError, match="at most 80"):
        encode_lists(lists_of())
    with pytest.raises(BlockError, match="more than 80"):
        unpacked(data)
    monkeypatch.setattr(list_blocks, "ITEMS_MAX", 1)
    with pytest.raises(BlockError, match="1 in a list"):
        lists_of()


def test_places_are_wide_where_the_dictionary_is_large() -> None:
    count = (1 << 16) + 1
    items = np.array([f"{number:06d}".encode() for number in range(count)])
    rows = -(-count // 500)
    block = ListBlock(
        np.arange(rows),
        np.minimum(np.arange(rows + 1) * 500, count),
        items,
        {},
        np.arange(count),
        np.zeros(count, dtype=np.float32),
    )
    back = decode_lists(block.encoded)
    assert back.places.dtype == np.uint32
    last = back.row(rows - 1)
    assert last is not None
    assert last.items[-1] == f"{count - 1:06d}"


@pytest.mark.parametrize(
    "changes",
    [
        {"keys": np.array([b"bob", b"ann"])},
        {"offsets": np.array([0, 2])},
        {"offsets": np.array([0, 4, 3])},
        {"offsets": np.array([1, 2, 3])},
        {"offsets": np.array([0.0, 2.0, 3.0])},
        {"items": np.array([b"mug", b"cup"])},
        {"items": np.array([b"mug", b"mug"])},
        {"items": np.array([1, 2])},
        {"items": np.array([b"cup", b"m" * 257])},
        {"items": np.array([b"cup", b"mug", b"pot"]), "attributes": {}},
        {"attributes": {"price": np.array([2.5], dtype=np.float32)}},
        {"attributes": {"price": np.array([2.5, 3.5])}},
        {"attributes": {"": np.array([2.5, 3.5], dtype=np.float32)}},
        {"places": np.array([1, 0, 2])},
        {"places": np.array([1, 0, -1])},
        {"places": np.array([1.0, 0.0, 1.0])},
        {"scores": np.array([0.75, 0.5], dtype=np.float32)},
        {"scores": np.array([0.75, 0.5, 0.25])},
    ],
)
def test_a_block_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BlockError):
        lists_of(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"places": np.array([0, 0, 1])},
        {"scores": np.array([0.5, 0.75, 0.25], dtype=np.float32)},
        {"scores": np.array([np.nan, 0.5, 0.25], dtype=np.float32)},
        {"items": np.array([b"cup", b"m\xffg"])},
    ],
)
def test_a_list_that_is_none_is_never_answered(changes: dict[str, Any]) -> None:
    with pytest.raises(BlockError, match="list of ann"):
        lists_of(**changes).row("ann")
