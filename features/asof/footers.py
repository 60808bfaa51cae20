"""Footers of Parquet files: rows and statistics of each row group, kept by the file's identity."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from glob import has_magic, iglob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from almanac.errors import FeatureError
from features import parquet_files
from features.asof.keys import Ints
from features.asof.times import GREATEST, LEAST, converted
from features.asof.view import Files

if TYPE_CHECKING:
    import pyarrow as pa

FOOTERS_MAX = 4_096  # kept; the one that was used longest ago goes first
UNITS = {"milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}

Limits = tuple[Ints, Ints]
Identity = tuple[str, int, int, int]  # path, number on its disk, size in bytes, time of the last change in nanoseconds
_kept: OrderedDict[Identity, Footer] = OrderedDict()


@dataclass(frozen=True, kw_only=True)
class Footer:
    """What a file says of itself: schema, and for each row group its number of rows and where it starts."""

    path: str
    identity: Identity | None
    metadata: Any
    schema: pa.Schema
    rows: Ints
    starts: Ints
    _limits: dict[str, Limits | None] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Rows of the file."""
        return int(self.metadata.num_rows)

    @property
    def changed(self) -> bool:
        """Whether another file lies there by now. Of a file elsewhere it is not known."""
        return self.identity is not None and self.identity != _identity(self.path)

    def matching(
        self, timestamp: str, unit: str, earliest: int | None, latest: int | None, keys: Mapping[str, tuple[int, int]]
    ) -> list[int]:
        """The row groups that may have a row within a time and within limits of keys."""
        open_: npt.NDArray[np.bool_] = self.rows > 0
        for column, low, high in [(timestamp, earliest, latest), *((name, *limits) for name, limits in keys.items())]:
            known = self.limits(column, unit)
            if known is not None:
                least, greatest = known
                open_ = open_ & (greatest >= (LEAST if low is None else low))
                open_ = open_ & (least <= (GREATEST if high is None else high))
        return [int(group) for group in np.flatnonzero(open_)]

    def limits(self, column: str, unit: str) -> Limits | None:
        """The least and the greatest value of a column of whole numbers or times, a row group each; None if unknown."""
        name = f"{column} {unit}"
        if name not in self._limits:
            self._limits[name] = self._read_limits(column, unit)
        return self._limits[name]

    def _read_limits(self, column: str, unit: str) -> Limits | None:
        place = next((i for i in range(self.metadata.num_columns) if self._name(i) == column), None)
        if place is None:
            return None
        described = self.metadata.schema.column(place)
        if described.physical_type not in ("INT32", "INT64"):
            return None
        kind = json.loads(described.logical_type.to_json())
        if kind["Type"] not in ("None", "Int", "Timestamp") or kind.get("isSigned") is False:
            return None
        least, greatest = np.full(len(self.rows), LEAST), np.full(len(self.rows), GREATEST)
        for group in range(len(self.rows)):
            known = self.metadata.row_group(group).column(place).statistics
            if known is not None and known.has_min_max:
                least[group], greatest[group] = known.min_raw, known.max_raw
        if kind["Type"] != "Timestamp":
            return least, greatest
        coded = UNITS[kind["timeUnit"]]
        return converted(least, coded, unit, up=False), converted(greatest, coded, unit, up=True)

    def _name(self, place: int) -> str:
        return str(self.metadata.schema.column(place).path)


def footer_of(path: str, filesystem: Any, view: str) -> Footer:
    """The footer of a file; from memory if path, size and time of change are those that were read.

    Raises:
        FeatureError: it is no Parquet file, or damaged; names view and file.
    """
    import pyarrow as pa

    try:
        identity = None
        if filesystem is None:
            identity = _identity(path)
            if identity in _kept:
                _kept.move_to_end(identity)
                return _kept[identity]
        metadata = parquet_files.footer(path, filesystem)
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise FeatureError(f"view {view}: {path} is no readable Parquet file ({reason}): write it again") from error
    rows = np.array([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], dtype=np.int64)
    starts = np.cumsum(rows) - rows
    footer = Footer(path=path, identity=identity, metadata=metadata, schema=schema, rows=rows, starts=starts)
    if identity is not None:
        _kept[identity] = footer
        while len(_kept) > FOOTERS_MAX:
            _kept.popitem(last=False)
    return footer


def _identity(path: str) -> Identity:
    status = Path(path).stat()
    return path, status.st_ino, status.st_size, status.st_mtime_ns


def paths_of(files: Files, what: str) -> list[str]:
    """Every Parquet file that a source names, in order; `what` is how an error names it.

    Raises:
        FeatureError: there is none.
    """
    found: list[str] = []
    for path in files.paths:
        if files.filesystem is not None:
            found += _elsewhere(path, files.filesystem)
        elif has_magic(path) and not Path(path).exists():
            found += sorted(iglob(path, recursive=True))
        elif Path(path).is_dir():
            inside = (one for one in Path(path).rglob("*.parquet") if _visible(one.relative_to(path).as_posix()))
            found += sorted(map(str, inside))
        elif Path(path).is_file():
            found.append(path)
    if not found:
        raise FeatureError(f"{what} has no Parquet files ({', '.join(files.paths)}): write them, or mend its path")
    return found


def _elsewhere(path: str, filesystem: Any) -> list[str]:
    import pyarrow.fs

    here = filesystem.get_file_info(path)
    if here.type != pyarrow.fs.FileType.Directory:
        return [path] if here.is_file else []
    inside = filesystem.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
    files = (one.path for one in inside if one.is_file and one.path.endswith(".parquet"))
    return sorted(file for file in files if _visible(file[len(here.path) :]))


def _visible(path: str) -> bool:
    """Not a draft: by custom, names with a point or a line in front are no data."""
    return not any(part.startswith((".", "_")) for part in path.split("/"))
