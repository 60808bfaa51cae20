"""How much memory columns of a Parquet file take when they are read: known before they are.

A few kilobytes may unpack to gigabytes: by compression, by counts in place of equal values, by one long text to
which each row refers. So the headers of all pages are looked at, and what is asked for must be within a budget.
Texts are weighed in steps, each nearer and dearer than the one before: by the size of their dictionary, by its
longest text, and by what each row refers to. Most files need the first alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from features.parquet_pages import DICTIONARY, Damaged, pages_of

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_BYTES_MAX = 4 << 30
"""What the columns that are read may take of one row group."""
FILE_BYTES_MAX = 16 << 30
"""The same of a file that is read whole."""
SMALL_BYTES_MAX = 1 << 30
"""The same where a file is small itself: below a hundredth of this."""
FILE_TIMES_MAX = 100
"""How many times its own size any other file may take, up to the limits above."""
TEXT_BYTES_MAX = 64 << 10
"""Size of one text of a key: an entity's or an item's name is far smaller."""
NEAR_BYTES = 16 << 20
"""A column that takes no more is not weighed nearer."""
MEASURED_ROWS = 1 << 16
"""How many rows are looked at together to say what texts take."""
MEASURED_BYTES = 256 << 20
"""What these may take, where each text may be as long as a page."""

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
_NUMBER_WIDTH_MAX = 32
_TEXT_WIDTH = 16
"""Of a text besides its bytes: where it begins, or its place in a dictionary."""
_LEVELS_WIDTH = 4
"""Of a value that may be null or lies in a list: how deep it lies, and whether it repeats."""
_PLAIN, _PLAIN_DICTIONARY, _DELTA_LENGTHS, _RLE_DICTIONARY = 0, 2, 6, 8


@dataclass(kw_only=True)
class _Weight:
    """What a column of a row group takes, in bytes.

    Args:
        path: of the column.
        group: number of the row group.
        listed: whether a row may have many of its values.
        base: what its pages unpack to, or its values without texts that repeat, whichever is more.
        repeated: how many of its values are texts of a dictionary.
        prefixed: how many may go on from the text before them.
        dictionary: size of the dictionary; `page` of the largest page.
        most: what it takes at most, as far as is known.
    """

    path: str
    group: int
    listed: bool
    base: int = 0
    repeated: int = 0
    prefixed: int = 0
    dictionary: int = 0
    page: int = 0
    most: int = 0


class Input(Protocol):
    """An opened file."""

    @property
    def metadata(self) -> Any:
        """Its footer."""

    @property
    def raw(self) -> Any:
        """Its bytes."""

    @property
    def window(self) -> int:
        """How many of them to read at once where headers are looked for."""

    def batches(self, rows: int, group: int, path: str, dictionaries: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """A column of a row group, so many rows at a time, its texts as dictionaries where that is asked."""


def over_budget(file: Input, columns: Collection[str] | None, groups: Sequence[int], *, whole: bool) -> str | None:
    """Why columns of a file need too much memory; None if they do not.

    Args:
        columns: those that are read, by their names; None for all.
        groups: numbers of the row groups that are read.
        whole: whether they are all in memory at once.

    Raises:
        pyarrow.ArrowInvalid: pages do not hold what the footer says.
    """
    import pyarrow as pa

    schema = file.metadata.schema
    paths = [schema.column(at).path for at in range(file.metadata.num_columns)]
    wanted = [at for at, path in enumerate(paths) if columns is None or _within(path, columns)]
    weights = []
    for group in groups:
        described = file.metadata.row_group(group)
        for at in wanted:
            try:
                weights.append(_weight(file, described, at, group))
            except Damaged as damaged:
                raise pa.ArrowInvalid(f"column {paths[at]}, row group {group}: {damaged}") from None
    limits = _limits(file.raw.size(), whole)
    steps = (_by_base, _by_dictionary, _by_longest, _by_rows)
    for number, step in enumerate(steps):
        for weight in weights:
            if number < 2 or (weight.most > NEAR_BYTES and weight.repeated + weight.prefixed):
                weight.most = step(file, weight)
        why = _over(weights, limits)
        if number and why is None:  # a text may take more than the first step says
            return None
        if not number and why is not None:  # and nothing takes less
            break
    return why


def _within(path: str, columns: Collection[str]) -> bool:
    """Whether a column is one of these, or of one of these; DuckDB takes capitals and small letters for the same."""
    own = path.casefold()
    return any(own == (name := column.casefold()) or own.startswith(f"{name}.") for column in columns)


def _limits(size: int, whole: bool) -> tuple[int, int | None]:
    """What one row group may take, and what all may."""
    own = max(SMALL_BYTES_MAX, FILE_TIMES_MAX * size)
    return min(GROUP_BYTES_MAX, own), min(FILE_BYTES_MAX, own) if whole else None


def _over(weights: list[_Weight], limits: tuple[int, int | None]) -> str | None:
    group_most, file_most = limits
    groups = dict[int, int]()
    for weight in weights:
        groups[weight.group] = groups.get(weight.group, 0) + weight.most
    for group, size in groups.items():
        if size > group_most:
            heaviest = max((one for one in weights if one.group == group), key=lambda one: one.most)
            return (
                f"row group {group} unpacks to {size:,} bytes, {heaviest.most:,} of them column {heaviest.path}, more "
                f"than {group_most:,} for a file of this size: write smaller row groups, and what repeats less often"
            )
    total = sum(groups.values())
    if file_most is not None and total > file_most:
        by_path = dict[str, int]()
        for weight in weights:
            by_path[weight.path] = by_path.get(weight.path, 0) + weight.most
        path = max(by_path, key=lambda one: by_path[one])
        return (
            f"it unpacks to {total:,} bytes, {by_path[path]:,} of them column {path}, more than {file_most:,} for a "
            "file of this size: cut it"
        )
    return None


def _weight(file: Input, described: Any, at: int, group: int) -> _Weight:
    """What the headers of a column's pages say.

    Raises:
        Damaged: they cannot be read, or hold fewer values than the footer says.
    """
    chunk, column = described.column(at), file.metadata.schema.column(at)
    weight = _Weight(path=column.path, group=group, listed=column.max_repetition_level > 0)
    if chunk.num_values < described.num_rows:
        raise Damaged(f"the footer says {chunk.num_values:,} values of {described.num_rows:,} rows")
    if not chunk.num_values:
        return weight
    start, first = chunk.data_page_offset, chunk.dictionary_page_offset if chunk.has_dictionary_page else None
    if first:
        if not 4 <= first <= start:
            raise Damaged(f"its dictionary begins at byte {first:,}, its data at {start:,}")
        start = first
    text = column.physical_type == "BYTE_ARRAY" and column.logical_type.type != "DECIMAL"
    width = _TEXT_WIDTH if text else _WIDTHS.get(column.physical_type, max(column.length, _NUMBER_WIDTH_MAX))
    width += _LEVELS_WIDTH if column.max_definition_level else 0
    values = unpacked = 0
    for page in pages_of(file.raw, start, start + chunk.total_compressed_size, file.window):
        unpacked += page.unpacked
        weight.page = max(weight.page, page.unpacked)
        if page.kind == DICTIONARY:
            weight.dictionary = max(weight.dictionary, page.unpacked)
            continue
        values += page.values
        if text and page.encoding in (_PLAIN_DICTIONARY, _RLE_DICTIONARY):
            weight.repeated += page.values
        elif text and page.encoding not in (_PLAIN, _DELTA_LENGTHS):
            weight.prefixed += page.values
    if values < chunk.num_values:
        raise Damaged(f"its pages hold {values:,} values, the footer says {chunk.num_values:,}")
    weight.base = max(unpacked, values * width) if not text else unpacked + values * width
    return weight


def _by_base(file: Input, weight: _Weight) -> int:
    return weight.base


def _by_dictionary(file: Input, weight: _Weight) -> int:
    return weight.base + weight.repeated * weight.dictionary + weight.prefixed * weight.page


def _by_longest(file: Input, weight: _Weight) -> int:
    """No text of a dictionary is longer than its longest."""
    if not weight.repeated:
        return weight.most
    batch = next(file.batches(1, weight.group, weight.path, [weight.path]), None)
    longest = 0 if batch is None else max((_longest(one) for one in _texts(batch.column(0))), default=0)
    return weight.base + weight.repeated * longest + weight.prefixed * weight.page


def _by_rows(file: Input, weight: _Weight) -> int:
    """What every row refers to; it is not gone through to its end where it is too much."""
    import pyarrow.compute as pc

    size = weight.base
    if not weight.prefixed:
        for batch in file.batches(MEASURED_ROWS, weight.group, weight.path, [weight.path]):
            for one in _texts(batch.column(0)):
                lengths = pc.binary_length(one.dictionary).cast("int64")
                size += pc.sum(lengths.take(one.indices)).as_py() or 0
        return size
    if weight.listed:
        return weight.most
    for batch in file.batches(max(1, MEASURED_BYTES // weight.page), weight.group, weight.path, []):
        texts = batch.column(0)
        size += texts.nbytes
        if size > GROUP_BYTES_MAX or (pc.max(pc.binary_length(texts)).as_py() or 0) > weight.page:
            return weight.most  # a writer begins each page anew
    return size


def _texts(values: pa.Array) -> Iterator[pa.DictionaryArray]:
    """The dictionaries within a column, wherever they lie in its lists and structures."""
    import pyarrow as pa

    kind = values.type
    if pa.types.is_dictionary(kind):
        yield values
    elif pa.types.is_map(kind):
        yield from _texts(values.keys)
        yield from _texts(values.items)
    elif pa.types.is_struct(kind):
        for place in range(kind.num_fields):
            yield from _texts(values.field(place))
    elif pa.types.is_nested(kind):
        yield from _texts(values.values)


def _longest(texts: pa.DictionaryArray) -> int:
    import pyarrow.compute as pc

    return int(pc.max(pc.binary_length(texts.dictionary)).as_py() or 0)


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
