"""Numbers for keys: each distinct key of the entities gets one, and rows of a source get the number of theirs, or -1.

Whole numbers are looked up in a table where they lie close together, and by
binary search where not; anything else by Arrow's hash table. Several key
columns become one by numbering pairs, column after column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from almanac.errors import FeatureError

if TYPE_CHECKING:
    import pyarrow as pa

Ints = npt.NDArray[np.int64]
NONE = -1
DENSE_ENTRIES_MAX = 1 << 24  # of a table of four bytes an entry
DENSE_SHARE = 4  # entries for each key, if that is more


def common_type(ours: pa.DataType, theirs: pa.DataType, what: str) -> pa.DataType:
    """The type in which a key of the entities and one of a source are compared.

    Raises:
        FeatureError: there is none; `what` names view and key.
    """
    import pyarrow as pa
    from pyarrow import types

    kinds = [kind.value_type if types.is_dictionary(kind) else kind for kind in (ours, theirs)]

    def both(*tests: Any) -> bool:
        return all(any(test(kind) for test in tests) for kind in kinds)

    if all(types.is_floating(kind) for kind in kinds):
        return pa.float64()
    if both(types.is_integer, types.is_boolean, types.is_floating, types.is_null):
        return pa.int64()
    if both(types.is_string, types.is_large_string, types.is_string_view, types.is_null):
        return pa.large_string() if any(types.is_large_string(kind) for kind in kinds) else pa.string()
    if both(types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view, types.is_null):
        return pa.large_binary()
    if both(types.is_timestamp):
        return pa.timestamp("ns" if any(kind.unit == "ns" for kind in kinds) else "us", "UTC")
    if kinds[0] == kinds[1] or types.is_null(kinds[0]):
        return kinds[1]
    raise FeatureError(f"{what} is {kinds[0]} in the entities and {kinds[1]} in the source: give both the same type")


def as_type(column: pa.Array | pa.ChunkedArray, kind: pa.DataType, what: str) -> pa.Array:
    """A key column in the type it is compared in; null where it has no such value.

    Raises:
        FeatureError: a value is out of the type's range.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # of no chunk, or too long for one
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if array.type == kind:
        return array
    try:
        if types.is_floating(array.type) and types.is_integer(kind):
            whole = pc.equal(pc.floor(array), array)  # false for NaN
            array = pc.if_else(pc.and_(whole, pc.is_finite(array)), array, None)
        return array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise FeatureError(f"{what} cannot be read as {kind} ({str(error).splitlines()[0]}): mend the keys") from error


class Keys:
    """The distinct keys of the entities, numbered.

    Args:
        columns: the key columns of the entities, in the types they are compared in, of one length; may be none.
        rows: that length.
    """

    def __init__(self, columns: Sequence[pa.Array], rows: int) -> None:
        self._coders: list[_Whole | _Hashed] = []
        self._pairs: list[tuple[int, _Whole]] = []
        codes = np.zeros(rows, dtype=np.int64)
        for place, column in enumerate(columns):
            coder = _Whole.of(column) if _whole(column.type) else _Hashed(column)
            self._coders.append(coder)
            one = coder.codes(column)
            if place:
                pairs = _paired(codes, one, coder.count)
                pair = _Whole(pairs[pairs != NONE])
                self._pairs.append((coder.count, pair))
                one = pair.codes_of(pairs, None)
            codes = one
        self.codes: Ints = codes
        last = self._pairs[-1][1] if self._pairs else self._coders[-1] if self._coders else None
        self.count = last.count if last else 1

    def codes_of(self, columns: Sequence[pa.Array]) -> Ints:
        """The numbers of a source's keys: -1 where no entity has that key, or a part of it is null."""
        found = self._coders[0].codes(columns[0])
        for column, coder, (count, pair) in zip(columns[1:], self._coders[1:], self._pairs, strict=True):
            found = pair.codes_of(_paired(found, coder.codes(column), count), None)
        return found

    def limits(self, place: int) -> tuple[int, int] | None:
        """The least and the greatest value of a key column of whole numbers, for skipping row groups."""
        coder = self._coders[place]
        return coder.limits if isinstance(coder, _Whole) else None

    @property
    def values(self) -> Ints:
        """Of a single key column of whole numbers: the keys by their numbers."""
        (coder,) = self._coders
        assert isinstance(coder, _Whole)  # noqa: S101  whoever asks has looked at the type
        return coder.values


def _whole(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_int64(kind))


def _paired(first: Ints, second: Ints, count: int) -> Ints:
    return np.where((first == NONE) | (second == NONE), NONE, first * count + second)


class _Whole:
    """Numbers for whole numbers."""

    def __init__(self, values: Ints) -> None:
        self._low = int(values.min()) if len(values) else 0
        self._high = int(values.max()) if len(values) else 0
        span = self._high - self._low + 1
        self._table: npt.NDArray[np.int32] | None = None
        if span <= max(DENSE_ENTRIES_MAX, DENSE_SHARE * len(values)):
            self._table = np.full(span + 1, NONE, dtype=np.int32)  # the last entry is for all that lie outside
            self._table[values - self._low] = 0
            self._known = np.flatnonzero(self._table != NONE)
            self._table[self._known] = np.arange(len(self._known), dtype=np.int32)
        else:
            self._known = np.unique(values)
        self.count = len(self._known)

    @classmethod
    def of(cls, column: pa.Array) -> _Whole:
        """Of a column that may have nulls."""
        return cls(column.drop_null().to_numpy(zero_copy_only=False))

    @property
    def limits(self) -> tuple[int, int] | None:
        return (self._low, self._high) if self.count else None

    @property
    def values(self) -> Ints:
        return self._known if self._table is None else self._known + self._low

    def codes(self, column: pa.Array) -> Ints:
        if column.null_count:
            return self.codes_of(column.fill_null(0).to_numpy(), column.is_null().to_numpy(zero_copy_only=False))
        return self.codes_of(column.to_numpy(), None)

    def codes_of(self, values: Ints, absent: npt.NDArray[np.bool_] | None) -> Ints:
        if not self.count:
            return np.full(len(values), NONE, dtype=np.int64)
        if self._table is not None:
            # Unsigned, what lies below the lowest key wraps around to far above the highest.
            places = np.subtract(values, self._low).view(np.uint64)
            np.minimum(places, np.uint64(len(self._table) - 1), out=places)
            found = self._table[places.view(np.int64)].astype(np.int64)
        else:
            found = np.minimum(np.searchsorted(self._known, values), self.count - 1)
            found[self._known[found] != values] = NONE
        if absent is not None:
            found[absent] = NONE
        return found


class _Hashed:
    """Numbers for values of any other type."""

    limits = None

    def __init__(self, column: pa.Array) -> None:
        self._known = column.drop_null().unique()
        self.count = len(self._known)

    def codes(self, column: pa.Array) -> Ints:
        import pyarrow.compute as pc

        found = pc.index_in(column, value_set=self._known, skip_nulls=True)
        codes: Ints = found.fill_null(NONE).to_numpy(zero_copy_only=False).astype(np.int64)
        return codes
