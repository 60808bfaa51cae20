"""Scoring the entities alone whose inputs changed comes to the very blocks that scoring all of them comes to."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac.block_merging import merged, places_in
from almanac.blocks import Block
from almanac.clock import format_time
from almanac.errors import BlockError
from almanac.list_blocks import decode_lists
from almanac.pipeline import Pipeline
from almanac.ragged import Ragged
from almanac.ranking import Items
from almanac.ranking_declared import ANY_ITEM
from almanac.ranking_rows import NEIGHBOUR_WEIGHTS, NEIGHBOURS
from almanac.scoring import Scorer
from jobs.changed import COMMON_BYTES, Known, Maker, changed, taken_apart, whole
from jobs.digests import PARTITION
from jobs.entity_digests import entity_digests
from jobs.listing import Listed
from jobs.plan import Plan
from serving_cache.postgres_entities import KnownBlock
from serving_cache.records import StagedPartition
from tests.generations import NOON, bucket_pipeline, library
from tests.members import BOOKS
from tests.parity import trees

LISTS, NUMBERS = library("changed_lists", changed_only=True), bucket_pipeline("changed_numbers", changed_only=True)
DAY = 86_400_000_000
AT = int(NOON.timestamp()) * 1_000_000
SPREAD = {"visits": (0.0, 9.0), "shelf": (0.0, 7.0), "own_place": (-1.0, 8.0), "own_days": (0.0, 30.0)}
SCORERS = {
    True: trees.scorer(SPREAD, LISTS.output_names, LISTS.entity),
    False: trees.scorer({"visits": (0.0, 9.0), "spend": (0.0, 9.0)}, NUMBERS.output_names, NUMBERS.entity),
}


@dataclass
class Memory:
    """What was kept of the runs before, as the record keeps it; parts of it can be lost."""

    blocks: dict[int, tuple[KnownBlock, bytes]] = field(default_factory=dict)
    carried: list[int] = field(default_factory=list)

    def of(self, partitions: Sequence[int]) -> dict[int, Known]:
        made = {p: taken_apart(*self.blocks[p]) for p in partitions if p in self.blocks}
        return {p: known for p, known in made.items() if known is not None}

    def carry(self, equal: Mapping[KnownBlock, StagedPartition]) -> list[int]:
        for part in equal.values():
            self.keep(part)
        self.carried = [known.partition for known in equal]
        return self.carried

    def keep(self, part: StagedPartition) -> None:
        known = KnownBlock(part.partition, 1, 1, part.block.hash, part.entity_digests)
        self.blocks[part.partition] = (known, part.block.encoded)


class Shop:
    """Customers who come, buy and go, and items that change; made anew of any seed."""

    def __init__(self, seed: int, *, lists: bool) -> None:
        self.dice, self.lists = random.Random(seed), lists
        self.pipeline: Pipeline = LISTS if lists else NUMBERS
        self.books = {book: {"shelf": 1.0, "price": 2.0, "available": 1.0} for book in BOOKS}
        self.rows: dict[str, dict[str, Any]] = {}
        self.changed: set[str] = set()
        self.at = AT
        for number in range(self.dice.randint(0, 30)):
            self.come(number)

    def come(self, number: int) -> None:
        key = f"é{number}" if number % 7 == 0 else f"user {number}"
        self.rows[key] = {"visits": 0.0, "spend": 1.0, "items": []}
        self.buy(key)

    def buy(self, key: str) -> None:
        items = [*self.dice.sample(BOOKS, self.dice.randint(0, 3)), *(item for item, _ in self.rows[key]["items"])]
        times = [self.at - number * DAY for number in range(len(dict.fromkeys(items)))]
        self.rows[key]["items"] = list(zip(dict.fromkeys(items), times, strict=True))
        self.rows[key]["visits"] = self.rows[key]["visits"] + 1
        self.changed.add(key)

    def step(self) -> None:
        """Something happens, or nothing."""
        self.changed = set()
        for _ in range(self.dice.choice([0, 1, 1, 3])):
            what = self.dice.choice(["buy", "buy", "come", "go"])
            if what == "come" or not self.rows:
                self.come(self.dice.randrange(100, 200))
            elif what == "go":
                del self.rows[self.dice.choice(sorted(self.rows))]
            else:
                self.buy(self.dice.choice(sorted(self.rows)))
        if self.dice.random() < 0.5:
            book = self.dice.choice([*BOOKS, *BOOKS[:9], *BOOKS[:9]])  # what is popular is in more lists
            self.books[book][self.dice.choice(["shelf", "price", "available"])] = float(self.dice.randint(0, 9))

    def piece(self) -> tuple[list[int], pa.Table]:
        """All partitions and their features, a partition's rows together and in any order."""
        keys = sorted(self.rows, key=lambda key: (self.pipeline.partitions.partition_of(key), self.dice.random()))
        held = [self.rows[key] for key in keys]
        columns: dict[str, Any] = {
            self.pipeline.entity: pa.array(keys, pa.string()),
            PARTITION: pa.array([self.pipeline.partitions.partition_of(key) for key in keys], pa.int32()),
            "visits": pa.array([row["visits"] for row in held], pa.float32()),
        }
        if self.lists:
            columns |= {
                "bought_items": pa.array([[item for item, _ in r["items"]] for r in held], pa.list_(pa.string())),
                "bought_at": pa.array([[at for _, at in row["items"]] for row in held], pa.list_(pa.int64())),
                "bought_counts": pa.array([[1 for _ in row["items"]] for row in held], pa.list_(pa.int64())),
            }
        else:
            columns["spend"] = pa.array([row["spend"] for row in held], pa.float32())
        return list(range(self.pipeline.partitions.count)), pa.table(columns)

    def maker(self) -> Maker:
        """What makes blocks of the piece."""
        plan = Plan(
            pipeline=self.pipeline.name, generation=1, token=1, cutoff=format_time(NOON), as_of=format_time(NOON),
            model="m-v1", shards=[],
        )  # fmt: skip
        scorer: Scorer = SCORERS[self.lists]
        return Maker(self.pipeline, plan, scorer, self.listed() if self.lists else None)

    def listed(self) -> Listed:
        """The items of now."""
        keys = [*self.books, ANY_ITEM]
        columns = {
            name: np.array([*(row[name] for row in self.books.values()), 1], np.float32)
            for name in ("shelf", "price", "available")
        }
        near = [[BOOKS[(number + step) % len(BOOKS)] for step in (1, 2)] for number in range(len(BOOKS))]
        lists = {
            NEIGHBOURS: Ragged.of([*near, BOOKS[:9]], object),
            NEIGHBOUR_WEIGHTS: Ragged.of([*([0.5, 0.25] for _ in near), [1 / (1 + n) for n in range(9)]], np.float32),
        }
        assert self.pipeline.ranking is not None
        return Listed(self.pipeline, self.pipeline.ranking, Items.of(keys, columns, lists), self.at)


def run(shop: Shop, memory: Memory) -> int:
    """A night with what is remembered, held to one that scores everybody; returns how many were not scored."""
    piece, refused = shop.piece(), {}
    expected = {part.partition: part for part in whole(shop.maker(), piece, {}).ready}
    found = changed(shop.maker(), piece, memory, refused)
    for part in found.ready:
        memory.keep(part)
    assert refused == {}
    assert sorted([*(part.partition for part in found.ready), *memory.carried]) == sorted(expected)
    for partition, part in expected.items():
        known, data = memory.blocks[partition]
        assert data == part.block.encoded
        assert len(known.digests) in (0, COMMON_BYTES + (16 if shop.lists else 8) * part.block.rows)
    assert found.rows == len(shop.rows)
    return found.unchanged


@pytest.mark.parametrize("lists", [True, False])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_happens_the_blocks_are_those_of_scoring_everybody(lists: bool, seed: int) -> None:
    shop, memory = Shop(seed, lists=lists), Memory()
    assert run(shop, memory) == 0
    for _ in range(4):
        before = {key: dict(row) for key, row in shop.rows.items()}, {b: dict(row) for b, row in shop.books.items()}
        shop.step()
        lost = shop.dice.choice([None, None, None, "all", "digests", "bytes"])
        for partition, (known, data) in list(memory.blocks.items()):
            if lost == "all":
                del memory.blocks[partition]
            elif lost == "digests":
                memory.blocks[partition] = (known._replace(digests=known.digests[:-1]), data)
            elif lost == "bytes":
                memory.blocks[partition] = (known, data[:-1] + bytes([data[-1] ^ 1]))
        same = [key for key, row in shop.rows.items() if before[0].get(key) == row]
        kept = run(shop, memory)
        if lost is not None:
            assert kept == 0
        elif before[1] == shop.books or not lists:
            assert kept == len(same)
        else:  # an item is another: of those who did nothing, who has it among the candidate items
            assert kept <= len(same)


def test_an_item_that_left_is_in_no_list_though_its_reader_did_nothing() -> None:
    shop, memory = Shop(4, lists=True), Memory()
    while len(shop.rows) < 20:
        shop.come(len(shop.rows) + 300)
    run(shop, memory)
    assert run(shop, memory) == len(shop.rows)
    assert memory.carried == list(range(LISTS.partitions.count))
    shop.books[BOOKS[0]]["available"] = 0.0
    run(shop, memory)
    assert not any(BOOKS[0].encode() in data for _, data in memory.blocks.values())


def test_who_has_nothing_to_do_with_an_item_that_changed_is_not_scored() -> None:
    shop, memory = Shop(4, lists=True), Memory()
    shop.rows = {
        key: {"visits": 1.0, "spend": 1.0, "items": [(BOOKS[number], AT)]} for key, number in (("a", 12), ("b", 20))
    }
    run(shop, memory)
    for book, name, value, kept in (
        (BOOKS[21], "price", 7.0, 1),  # goes with b's
        (BOOKS[21], "price", 7.0, 2),
        (BOOKS[13], "shelf", 6.0, 1),  # goes with a's
        (BOOKS[27], "shelf", 6.0, 2),  # nobody's
        (BOOKS[27], "available", 0.0, 2),
        (BOOKS[0], "price", 9.0, 0),  # popular
    ):
        shop.books[book][name] = value
        assert run(shop, memory) == kept, book


def test_a_block_that_contradicts_its_digests_has_its_partition_scored_whole() -> None:
    shop, memory = Shop(5, lists=True), Memory()
    one, other, *_ = (key for key in map(str, range(40)) if LISTS.partitions.partition_of(key) == 2)
    shop.rows = {one: {"visits": 1.0, "spend": 1.0, "items": [(BOOKS[12], AT)]}}
    run(shop, memory)
    known, data = memory.blocks[2]
    block = decode_lists(data)
    wrong = replace(block, attributes={"price": block.attributes["price"] + 1})
    memory.blocks[2] = (known._replace(block_hash=wrong.hash), wrong.encoded)
    shop.rows[other] = shop.rows[one]
    assert run(shop, memory) == 0


def test_a_night_scored_anew_looks_nothing_up_and_is_remembered_all_the_same() -> None:
    shop, memory = Shop(9, lists=True), Memory()
    run(shop, memory)
    maker = replace(shop.maker(), plan=replace(shop.maker().plan, anew=True))
    assert changed(maker, shop.piece(), Memory(), {}).unchanged == 0
    assert run(shop, memory) == len(shop.rows)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([["ab", "c"]], [["a", "bc"]]),
        ([["a"], []], [[], ["a"]]),
        ([[""]], [[]]),
        ([["a", ""]], [["", "a"]]),
    ],
)
def test_lists_that_differ_in_their_cuts_alone_have_other_digests(one: list[list[str]], other: list[list[str]]) -> None:
    digests = [entity_digests(pa.table({"x": pa.array(rows, pa.list_(pa.string()))})) for rows in (one, other)]
    assert digests[0] is not None
    assert digests[1] is not None
    assert (digests[0] != digests[1]).all()


def test_a_row_has_one_digest_wherever_it_stands_and_none_where_something_is_null() -> None:
    table = pa.table(
        {
            "t": ["a", "é", ""],
            "n": pa.array([1, 2, 3], pa.int64()),
            "l": [[1.5], [], [2.5, 3.5]],
            "s": [["x"], ["y"], []],
        }
    )
    every = entity_digests(table)
    assert every is not None
    alone = [entity_digests(table.slice(row, 1)) for row in range(3)]
    assert [None if one is None else one[0] for one in alone] == every.tolist()
    assert entity_digests(table.slice(0, 0)) is not None
    for name, kind, values in (
        ("n", pa.int64(), [1, None, 3]),
        ("l", pa.list_(pa.float64()), [[1.0], None, []]),
        ("s", pa.list_(pa.string()), [["x", None], [], []]),
    ):
        place = table.column_names.index(name)
        assert entity_digests(table.set_column(place, name, pa.array(values, kind))) is None


def test_blocks_that_do_not_go_together_are_refused() -> None:
    numbers = Block(keys=np.array([1, 5]), columns={"x": np.array([1, 2], np.float32)})
    assert places_in(numbers, np.array([5, 0, 9])).tolist() == [1, -1, -1]
    assert places_in(numbers, np.array([b"5"])).tolist() == [-1]
    other = Block(keys=np.array([2]), columns={"y": np.array([1], np.float32)})
    with pytest.raises(BlockError, match="other columns"):
        merged(numbers, np.array([0]), other)
    with pytest.raises(BlockError):
        merged(numbers, np.array([0]), numbers)
