"""How much memory a Parquet file may need: known from its footer before a column is read.

A few hundred kilobytes may unpack to gigabytes. So only declared columns are read, and what their footer says they
unpack to must be within a budget; a text that repeats is looked at once, in its dictionary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_BYTES_MAX = 4 << 30
"""What the declared columns of one row group may unpack to."""
FILE_BYTES_MAX = 16 << 30
"""The same of a file that is read whole."""
TEXT_BYTES_MAX = 64 << 10
"""Size of one text of a key: an entity's or an item's name is far smaller."""


def over_budget(metadata: Any, columns: Collection[str], *, whole: bool) -> str | None:
    """Why columns of a file need too much memory; None if they do not.

    Args:
        metadata: the file's footer, as pyarrow has it.
        columns: those that are read.
        whole: whether all row groups are read at once.
    """
    total = 0
    for number, size in enumerate(_sizes(metadata, columns)):
        total += size
        if size > GROUP_BYTES_MAX:
            return (
                f"row group {number} of {', '.join(sorted(columns))} unpacks to {size:,} bytes, more than "
                f"{GROUP_BYTES_MAX:,}: write smaller row groups"
            )
    if whole and total > FILE_BYTES_MAX:
        return f"{', '.join(sorted(columns))} unpack to {total:,} bytes, more than {FILE_BYTES_MAX:,}: cut the file"
    return None


def _sizes(metadata: Any, columns: Collection[str]) -> Iterator[int]:
    """What each row group's columns unpack to, in bytes."""
    paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    wanted = [at for at, path in enumerate(paths) if any(path == one or path.startswith(f"{one}.") for one in columns)]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        yield sum(group.column(at).total_uncompressed_size for at in wanted)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can be read as dictionaries of texts."""
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(
        types.is_string(kind) or types.is_binary(kind) or types.is_large_string(kind) or types.is_large_binary(kind)
    )


def long_text(column: pa.ChunkedArray) -> int | None:
    """The size of a text column's longest text, in bytes, if it is above `TEXT_BYTES_MAX`; None if not.

    Args:
        column: read as dictionaries (`read_dictionary`), so that a text that repeats takes its memory once.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    longest = 0
    for chunk in column.chunks:
        values = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        longest = max(longest, pc.max(pc.binary_length(values)).as_py() or 0)
    return longest if longest > TEXT_BYTES_MAX else None
