"""Parquet files that a view's FileSource names: a file, a pattern or a folder; its path means the same to all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from almanac.clock import need_utc
from almanac.errors import FeatureError
from features.asof import Files, paths_of

if TYPE_CHECKING:
    from feast.data_source import DataSource

FILES_MAX = 10_000
NAMES_SHOWN_MAX = 30


def files_of(path: str, view: str) -> list[str]:
    """The files that are there now, in order.

    Args:
        path: of a file, a pattern with a `*`, or a folder, whose `.parquet` files at any depth count.
        view: for messages.

    Raises:
        FeatureError: none is, or too many are.
    """
    try:
        found = paths_of(Files(paths=(path,)), f"view {view}")
    except FeatureError:
        raise FeatureError(f"view {view} reads {path}, where no file is: write it, or correct the path") from None
    if len(found) > FILES_MAX:
        raise FeatureError(f"view {view} reads {len(found)} files, at most {FILES_MAX}: write larger ones")
    return found


def folder_of(path: str) -> Path:
    """Where the archive of a view's events lies beside its files."""
    return Path(path) if Path(path).is_dir() else Path(path).parent


def columns_of(source: DataSource) -> dict[str, str]:
    """The files' columns by the view's names, where a source's `field_mapping` has others."""
    return {name: column for column, name in dict(source.field_mapping or {}).items()}


def need_columns(where: str, names: Sequence[str], wanted: Iterable[str], reader: str) -> None:
    """Refuse a file that lacks a column, or has one twice: nobody could say which is meant.

    Args:
        where: what has the columns.
        names: of its columns.
        wanted: those that are read.
        reader: who reads them.

    Raises:
        FeatureError: names file, column and remedy.
    """
    for name in wanted:
        if names.count(name) == 1:
            continue
        have = ", ".join(names[:NAMES_SHOWN_MAX]) + (", …" if len(names) > NAMES_SHOWN_MAX else "")
        if name in names:
            raise FeatureError(f"{where} has the column {name} {names.count(name)} times ({have}): write it once")
        raise FeatureError(
            f"{where} has no column {name}, which {reader} reads (it has {have or 'none'}): write the column, or "
            "correct the view"
        )


def renamed(relation: str, names: Sequence[str], columns: Mapping[str, str]) -> str:
    """What stands in DuckDB's FROM, with its columns under the view's names."""
    if not any(name in columns for name in names):
        return relation
    chosen = ", ".join(f"{quoted(columns.get(name, name))} AS {quoted(name)}" for name in dict.fromkeys(names))
    return f"(SELECT {chosen} FROM {relation})"  # noqa: S608


def quoted(name: str) -> str:
    """A column's name as DuckDB reads it."""
    return '"' + name.replace('"', '""') + '"'


def literal(moment: datetime) -> str:
    """A moment as DuckDB reads it."""
    return f"TIMESTAMPTZ '{need_utc(moment).isoformat(sep=' ')}'"
