"""Whether Parquet files hold what a feature view reads of them: by their schemas; and of rows, by their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from almanac.errors import FeatureError
from features import parquet_files
from features.own_files import need_columns

if TYPE_CHECKING:
    import pyarrow as pa

    from features.declared_types import Misfit


ROWS_AT_ONCE = 1 << 16
"""How many rows are looked through at once."""


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What a view reads of each of its files.

    Args:
        view: its name.
        key: column of the entity.
        whole_keys: whether keys are whole numbers; otherwise strings.
        moments: columns of the event time and, if there is one, the writing time.
        features: their columns, each with Feast's value type of it.
    """

    view: str
    key: str
    whole_keys: bool
    moments: tuple[str, ...]
    features: Mapping[str, str] = field(default_factory=dict)


def check_schema(file: str, needed: Needed) -> None:
    """Refuse a file that cannot be read as the view reads it.

    Raises:
        FeatureError: names file and column, and says what to write instead.
    """
    import pyarrow as pa

    try:
        schema = parquet_files.schema(file)
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise FeatureError(f"{file} of view {needed.view} is not a Parquet file ({reason}): write it again") from None
    wanted = (needed.key, *needed.moments, *needed.features)
    need_columns(file, schema.names, wanted, f"view {needed.view}")
    _check_key(file, needed, schema.field(needed.key).type)
    for name in needed.moments:
        _check_moment(file, name, schema.field(name).type)
    for name, value_type in needed.features.items():
        _check_feature(file, name, needed.view, schema.field(name).type, value_type)


def _check_feature(file: str, name: str, view: str, kind: pa.DataType, value_type: str) -> None:
    """Refuse a column of which no value can be of the declared type."""
    import pyarrow as pa

    from features.declared_types import Misfit, declared, declared_type

    if declared_type(value_type) is None:
        raise FeatureError(
            f"{file}: view {view} declares {name} as {value_type}, which only Feast itself can make of a file: "
            "materialize the view with `feast materialize`, or leave the feature out"
        )
    try:
        declared(pa.array([], kind), value_type)
    except Misfit as misfit:
        raise FeatureError(
            f"{file}: column {name} is {misfit.found}, view {view} declares {value_type}: {misfit.remedy}"
        ) from None


def _check_key(file: str, needed: Needed, kind: pa.DataType) -> None:
    import pyarrow as pa

    values = kind.value_type if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) else kind
    text = any(fits(values) for fits in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
    if not (pa.types.is_integer(values) if needed.whole_keys else text):
        wanted = "whole numbers" if needed.whole_keys else "strings"
        raise FeatureError(
            f"{file}: column {needed.key} is {kind}, the declaration has {wanted} for it: write {wanted}, or change "
            "the declaration and the Feast Entity"
        )


def _check_moment(file: str, name: str, kind: pa.DataType) -> None:
    import pyarrow as pa

    if not pa.types.is_timestamp(kind):
        raise FeatureError(f"{file}: column {name} is {kind}, expected a time: write timestamps in UTC")
    if kind.tz is None:
        raise FeatureError(
            f"{file}: column {name} has times without a time zone: write UTC, as df[{name!r}].dt.tz_localize('UTC')"
        )
    if kind.unit == "ns":
        raise FeatureError(
            f"{file}: column {name} has nanoseconds, which DuckDB does not read here: write microseconds, "
            "as to_parquet(…, coerce_timestamps='us')"
        )


def as_declared(
    table: pa.Table, kinds: Mapping[str, str], what: str, files: Sequence[str], columns: Mapping[str, str] | None = None
) -> pa.Table:
    """Rows of files with each column as its feature's value type.

    Args:
        kinds: of columns; others stay.
        what: names the view, for messages.
        files: that the rows are of.
        columns: the files' names of columns that have others here.

    Raises:
        FeatureError: a value does not fit; names file, column and row.
    """
    from features.declared_types import Misfit, declared

    for place, name in enumerate(table.column_names):
        if name in kinds:
            try:
                table = table.set_column(place, name, declared(table.column(place), kinds[name]))
            except Misfit as misfit:
                raise refusal(what, files, (columns or {}).get(name, name), (kinds[name], misfit)) from None
    return table


def refusal(
    what: str, files: Sequence[str], name: str, misfit: tuple[str, Misfit], filesystem: Any = None
) -> FeatureError:
    """Where the first value lies that does not fit: the files are looked through once more to say it.

    Args:
        what: names view or source.
        files: Parquet files, in order; none if the rows are of something else.
        name: of the column.
        misfit: the value type that it is declared as, and what was found.
        filesystem: where the files lie, if not on this machine.
    """
    from features.declared_types import Misfit

    kind, found = misfit
    where = what
    for path in files:
        try:
            _look_through(path, name, kind, filesystem)
        except Misfit as there:
            row = "" if there.row is None else f", row {there.row + 1:,}"
            where, found = f"{what}: {path}{row}", there
            break
    else:
        where = what if found.row is None or files else f"{what}, row {found.row + 1:,}"
    return FeatureError(f"{where}: column {name} {found.says}, declared is {kind}: {found.remedy}")


def _look_through(path: str, name: str, kind: str, filesystem: Any) -> None:
    """Read a column of a file.

    Raises:
        Misfit: with the file's row.
    """

    from features.declared_types import Misfit, declared

    first = 0
    for table in parquet_files.tables(path, [name], ROWS_AT_ONCE, filesystem=filesystem):
        try:
            declared(table.column(0), kind)
        except Misfit as misfit:
            raise Misfit(misfit.found, misfit.remedy, None if misfit.row is None else first + misfit.row) from None
        first += table.num_rows
