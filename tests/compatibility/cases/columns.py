"""Column types of files, and the types that a view may declare for them."""

from __future__ import annotations

import pyarrow as pa

from features.declared_types import Misfit, declared
from features.packed.codec import LISTS, NUMBERS
from tests.columns import columns
from tests.compatibility.tables import Case, Converted, Table, Taken

KINDS = sorted([*NUMBERS, "STRING", "UUID", "BYTES", *LISTS, "STRING_LIST"])


def fits(column: pa.Array, kind: str) -> bool | None:
    """Whether a declared type takes each value of a column; None where it takes some."""
    taken = 0
    rows = [row for row in range(len(column)) if column[row].is_valid]
    for row in rows:
        try:
            declared(column.slice(row, 1), kind)
            taken += 1
        except Misfit:
            pass
    return None if 0 < taken < len(rows) else taken == len(rows)


def attempt(column: pa.Array) -> Taken | Converted:
    """The declared types that take each value, and those that take what loses nothing."""
    if pa.types.is_null(column.type):
        return Taken("nulls of any declared type")
    fitting = {kind: fits(column, kind) for kind in KINDS}
    whole = [f"`{kind}`" for kind, fit in fitting.items() if fit]
    some = [f"`{kind}`" for kind, fit in fitting.items() if fit is None]
    if not whole and not some:
        declared(column, "STRING")  # says why not
    by_value = f"value by value, refused by file and row otherwise: {', '.join(some)}" if some else ""
    return Converted("; ".join(filter(None, [", ".join(whole), by_value])))


TABLE = Table(
    given="column of a Parquet file",
    cases=tuple(Case(f"`{column.type}`", lambda column=column: attempt(column)) for column in columns()),
)
