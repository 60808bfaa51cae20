"""The block codec: what goes in comes out, and no damage goes unnoticed."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from almanac import blocks
from almanac.blocks import Block, block_hash, decode, encode
from almanac.errors import BlockError

INT_KEYS = st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=40).map(
    lambda keys: np.array(sorted(keys), dtype=np.int64)
)
TEXT_KEYS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12),
    unique=True,
    max_size=40,
).map(lambda keys: np.array(sorted(k.encode() for k in keys), dtype="S64"))
NAMES = st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,39}", fullmatch=True), unique=True, min_size=1, max_size=5)


@st.composite
def some_blocks(draw: st.DrawFn) -> Block:
    keys = draw(INT_KEYS | TEXT_KEYS)
    columns = {name: draw(hnp.arrays(np.float32, len(keys))) for name in draw(NAMES)}
    return Block(keys=keys, columns=columns)


@given(some_blocks())
def test_a_block_comes_back_as_written(block: Block) -> None:
    data = encode(block)
    back = decode(data)
    assert list(back.columns) == list(block.columns)
    assert back.keys.tolist() == block.keys.tolist()
    for name, column in block.columns.items():
        assert back.columns[name].tobytes() == column.tobytes()
    assert encode(back) == data


@given(some_blocks(), st.data())
def test_any_changed_byte_is_noticed(block: Block, data: st.DataObject) -> None:
    packed = bytearray(encode(block))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BlockError):
        decode(bytes(packed))


@given(some_blocks(), st.data())
def test_any_truncation_or_growth_is_noticed(block: Block, data: st.DataObject) -> None:
    packed = encode(block)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(BlockError):
        decode(packed[:cut])
    with pytest.raises(BlockError):
        decode(packed + packed[:1])


@given(some_blocks())
def test_each_row_is_found_by_its_key(block: Block) -> None:
    back = decode(encode(block))
    for index, key in enumerate(block.keys.tolist()):
        row = back.row(key.decode() if isinstance(key, bytes) else key)
        assert row is not None
        for name, value in row.items():
            assert np.float32(value).tobytes() == block.columns[name][index].tobytes() or np.isnan(value)


def test_absent_keys_are_none() -> None:
    numbers = Block(keys=np.array([1, 5], dtype=np.int64), columns={"a": np.zeros(2, dtype=np.float32)})
    assert numbers.row(0) is numbers.row(3) is numbers.row(6) is None
    assert numbers.row("1") is None
    assert numbers.row(2**70) is None
    words = Block(keys=np.array([b"bc", b"d"]), columns={"a": np.zeros(2, dtype=np.float32)})
    assert words.row("d") == {"a": 0.0}
    assert words.row("bcd") is words.row("b") is words.row("") is words.row("d\0") is words.row(1) is None


def test_key_width_does_not_change_the_hash() -> None:
    values = {"a": np.array([1, 2], dtype=np.float32)}
    narrow = Block(keys=np.array([b"ann", b"bob"], dtype="S3"), columns=values)
    wide = Block(keys=np.array([b"ann", b"bob"], dtype="S200"), columns=values)
    assert block_hash(encode(narrow)) == block_hash(encode(wide))
    assert len(block_hash(encode(narrow))) == 32


def test_the_layout_of_version_1_is_what_is_stored() -> None:
    block = Block(keys=np.array([7], dtype=np.int64), columns={"a": np.array([1.5], dtype=np.float32)})
    head, crc, tail = encode(block)[:16], encode(block)[16:20], encode(block)[20:]
    assert head == b"ALMB\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00\x01\x00"
    assert tail == b"\x30\x00\x00\x00" + b"a".ljust(8, b"\0") + struct.pack("<q", 7) + struct.pack("<fxxxx", 1.5)
    assert len(crc) == 4


def test_decoding_copies_nothing() -> None:
    data = encode(Block(keys=np.arange(9, dtype=np.int64), columns={"a": np.ones(9, dtype=np.float32)}))
    back = decode(data)
    raw = np.frombuffer(data, dtype=np.uint8)
    assert np.shares_memory(back.keys, raw)
    assert np.shares_memory(back.columns["a"], raw)


def test_a_newer_version_says_so() -> None:
    data = bytearray(encode(Block(keys=np.arange(1, dtype=np.int64), columns={"a": np.ones(1, dtype=np.float32)})))
    data[4] = 2
    with pytest.raises(BlockError, match="version 2"):
        decode(bytes(data))


def test_a_block_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block(keys=np.arange(100, dtype=np.int64), columns={"a": np.ones(100, dtype=np.float32)})
    data = encode(block)
    monkeypatch.setattr(blocks, "BLOCK_BYTES_MAX", 1000)
    with pytest.raises(BlockError, match="at most 1,000"):
        encode(block)
    with pytest.raises(BlockError, match="more than 1,000"):
        decode(data)


@pytest.mark.parametrize(
    ("keys", "columns"),
    [
        (np.array([2, 1], dtype=np.int64), {"a": np.zeros(2, dtype=np.float32)}),
        (np.array([1, 1], dtype=np.int64), {"a": np.zeros(2, dtype=np.float32)}),
        (np.array([1, 2], dtype=np.int32), {"a": np.zeros(2, dtype=np.float32)}),
        (np.array([1, 2], dtype=np.int64), {"a": np.zeros(2, dtype=np.float64)}),
        (np.array([1, 2], dtype=np.int64), {"a": np.zeros(3, dtype=np.float32)}),
        (np.array([1, 2], dtype=np.int64), {}),
        (np.array([1, 2], dtype=np.int64), {"": np.zeros(2, dtype=np.float32)}),
        (np.array([[1]], dtype=np.int64), {"a": np.zeros(1, dtype=np.float32)}),
    ],
)
def test_a_block_that_makes_no_sense_is_refused(keys: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    with pytest.raises(BlockError):
        Block(keys=keys, columns=columns)
