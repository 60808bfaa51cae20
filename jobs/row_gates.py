"""Which gates judge each row by itself, and so may see the rows that changed without the others."""

from __future__ import annotations

from collections.abc import Sequence

from almanac.pipeline import Gate

ROW_BY_ROW = ("expect_column_values_to_", "expect_column_value_lengths_to_", "expect_column_pair_values_")
BETWEEN_ROWS = ("_unique", "_increasing", "_decreasing")


def row_by_row(gates: Sequence[Gate]) -> bool:
    """Whether each row passes or fails by itself, so that some rows can be judged without the others.

    A row count, a mean, a share (`mostly`), an order or a uniqueness are about the whole table.
    """
    return all(
        gate.expectation.startswith(ROW_BY_ROW)
        and not gate.expectation.endswith(BETWEEN_ROWS)
        and "mostly" not in gate.kwargs
        for gate in gates
    )
