"""How entities fall into partitions: tiles of a grid, or buckets of keys.

Pure arithmetic, no I/O. A partition is an integer from 0 to `count - 1`; its
label is what a person reads in the Airflow UI.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from almanac.checking import need_number
from almanac.errors import DeclarationError, UnknownEntity

CELLS_MAX = 64_000_000
PARTITIONS_MAX = 65_536
"""Tiles or buckets: a run plans, claims and names each of them, and what it plans travels between its tasks."""

EntityKey = int | str
WHOLE_MIN, WHOLE_MAX = -(2**63), 2**63 - 1
NO_TEXT = re.compile("[\0\ufffd\ud800-\udfff]")
"""What no key holds: a zero, which no store takes; what stands for bytes that are not UTF-8; half a character."""
"""Whole-number keys are what every store can hold: 64 bits with a sign."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A regular latitude-longitude grid cut into square tiles.

    Cells are numbered row by row from the north-west corner:
    `cell_id = row * cols + col`. A cell's position is its centre.

    Args:
        rows, cols: cells from north to south and from west to east.
        tile: edge of a tile, in cells; tiles at the south and east edge may be smaller.
        north, west: centre of cell 0, in degrees.
        step: distance between neighbouring centres, in degrees.
    """

    rows: int
    cols: int
    tile: int
    north: float = 58.0
    west: float = -10.0
    step: float = 0.25

    key_type = int

    def __post_init__(self) -> None:
        for name in ("rows", "cols", "tile"):
            need_number(f"Grid.{name}", getattr(self, name), 1, math.inf, whole=True)
        for name, most in (("north", 90), ("west", 360), ("step", 360)):
            need_number(f"Grid.{name}", getattr(self, name), -most, most)
        if self.rows * self.cols > CELLS_MAX:
            raise DeclarationError(
                f"Grid of {self.rows} x {self.cols} has more than {CELLS_MAX:,} cells: "
                "enlarge `step` or split the pipeline"
            )
        if self.count > PARTITIONS_MAX:
            raise DeclarationError(
                f"Grid of {self.rows} x {self.cols} in tiles of {self.tile} has {self.count:,} partitions, more than "
                f"{PARTITIONS_MAX:,}: enlarge `tile`"
            )
        if self.step <= 0:
            raise DeclarationError(f"Grid.step is {self.step}: give degrees between cells, above 0")
        south = self.north - (self.rows - 1) * self.step
        if not (south >= -90 and self.north <= 90):
            raise DeclarationError(f"Grid reaches from {self.north} to {south} degrees: latitudes end at 90 and -90")

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.rows * self.cols

    @property
    def tile_rows(self) -> int:
        """Tiles from north to south."""
        return math.ceil(self.rows / self.tile)

    @property
    def tile_cols(self) -> int:
        """Tiles from west to east."""
        return math.ceil(self.cols / self.tile)

    @property
    def count(self) -> int:
        """Number of partitions."""
        return self.tile_rows * self.tile_cols

    def partition_of(self, entity: EntityKey) -> int:
        """The tile that holds a cell.

        Raises:
            UnknownEntity: the cell is not on the grid.
        """
        cell = self.check(entity)
        row, col = divmod(cell, self.cols)
        return (row // self.tile) * self.tile_cols + col // self.tile

    def check(self, entity: EntityKey) -> int:
        """Return the cell's number, or say that the grid has no such cell."""
        if isinstance(entity, bool) or not isinstance(entity, int) or not 0 <= entity < self.cells:
            raise UnknownEntity(
                f"cell {entity!r} is not on the grid: cells are the whole numbers 0 to {self.cells - 1}"
            )
        return entity

    def entities(self, partition: int) -> Iterator[int]:
        """The cells of a tile, ascending."""
        tile_row, tile_col = divmod(partition, self.tile_cols)
        for row in range(tile_row * self.tile, min((tile_row + 1) * self.tile, self.rows)):
            for col in range(tile_col * self.tile, min((tile_col + 1) * self.tile, self.cols)):
                yield row * self.cols + col

    def label(self, partition: int) -> str:
        """What a person reads: `tile r2 c5`."""
        tile_row, tile_col = divmod(partition, self.tile_cols)
        return f"tile r{tile_row} c{tile_col}"

    def position(self, cell: int) -> tuple[float, float]:
        """Latitude and longitude of a cell's centre, in degrees."""
        row, col = divmod(self.check(cell), self.cols)
        return self.north - row * self.step, self.west + col * self.step

    def snap(self, lat: float, lon: float) -> int:
        """The cell whose centre is nearest to a point.

        A point may lie up to half a step outside the outermost centres.
        Longitudes are taken modulo 360.

        Raises:
            UnknownEntity: the point lies outside the grid, or is not a number.
        """
        if not (math.isfinite(lat) and math.isfinite(lon)):
            raise UnknownEntity(f"point ({lat}, {lon}) is not a position: give finite degrees")
        row = math.floor((self.north - lat) / self.step + 0.5)
        east = (lon - self.west + self.step / 2) % 360
        col = math.floor(east / self.step)
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            south = self.north - (self.rows - 1) * self.step
            last = self.west + (self.cols - 1) * self.step
            raise UnknownEntity(
                f"point ({lat}, {lon}) is outside the grid: "
                f"latitudes {south} to {self.north}, longitudes {self.west} to {last}"
            )
        return row * self.cols + col


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Keys such as user ids, spread over a fixed number of buckets by hash.

    The hash is BLAKE2b over the key's UTF-8 text, so that every process, machine
    and Python version agrees (the built-in `hash` does not).

    Args:
        count: how many buckets; a bucket is the unit that is scored, checked and stored.
        keys: `string` or `integer`, as the entity's column is in the Feast file.
    """

    count: int
    keys: Literal["string", "integer"] = "string"

    def __post_init__(self) -> None:
        need_number("Buckets.count", self.count, 1, PARTITIONS_MAX, whole=True)
        if self.keys not in ("string", "integer"):
            raise DeclarationError(f"Buckets.keys is {self.keys!r}: give 'string' or 'integer'")

    @property
    def key_type(self) -> type[int] | type[str]:
        """What a key is in Python and in every store."""
        return int if self.keys == "integer" else str

    def check(self, entity: EntityKey) -> EntityKey:
        """Return the key: a whole number of 64 bits, or text that is not empty and has at most 256 bytes.

        Raises:
            UnknownEntity: it is no such key.
        """
        if self.keys == "integer":
            if isinstance(entity, bool) or not isinstance(entity, int) or not WHOLE_MIN <= entity <= WHOLE_MAX:
                raise UnknownEntity(f"key {str(entity)[:40]!r} is not a whole number of 64 bits: give the entity's key")
            return entity
        if isinstance(entity, bool) or not isinstance(entity, int | str):
            raise UnknownEntity(f"key {str(entity)[:40]!r} is not text: give the entity's own key")
        text = str(entity)
        if NO_TEXT.search(text):
            raise UnknownEntity(
                f"key {text[:40]!a} holds a zero, or a sign that stands for no text: give the entity's own key"
            )
        if not 1 <= (len(text) if text.isascii() else len(text.encode())) <= 256:
            raise UnknownEntity(f"key {text[:40]!r} is empty or longer than 256 bytes: give the entity's own key")
        return text

    def partition_of(self, entity: EntityKey) -> int:
        """The bucket that holds a key."""
        return self.partitions_of([self.check(entity)])[0]

    def partitions_of(self, entities: Iterable[EntityKey]) -> list[int]:
        """The bucket of each of many keys, which were checked."""
        hashed, count = partial(hashlib.blake2b, digest_size=8), self.count
        return [int.from_bytes(hashed(str(key).encode()).digest(), "little") % count for key in entities]

    def label(self, partition: int) -> str:
        """What a person reads: `bucket 7`."""
        return f"bucket {partition}"


Partitioning = Grid | Buckets
