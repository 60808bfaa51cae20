"""Features brought forward to the moment of an event: what batch would have found there, as far as it is known.

An event replaces the observation view of its cell; history and neighbours are
those of the last materialized hour, so that `lag_1h` would lie two hours back.
The model was trained on columns that all speak from one hour. So, for an event
a while after the history's own hour, of the event's value and the history alone:

- a lag is the value at that distance from the event, on the straight line
  between the two known hours around it; an hour after the history that is exact;
- the means over a day gain the newest value and lose the oldest, the day's
  least and greatest gain the newest;
- neighbours and the grid's mean are taken to have changed as the cell itself has
  since, and a day ago as the cell did then.

Pure NumPy, but for `bring_table_forward`. docs/model.md has what it is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from almanac.clock import EPOCH, HOUR, need_utc
from features.grid import CARRIED, CARRIED_LAGS_HOURS, HISTORY, HISTORY_HOUR, LAGS_HOURS, MEAN_HOURS, NEIGHBOURS

if TYPE_CHECKING:
    import pyarrow as pa

FORWARD_HOURS_MAX = 6.0
"""Hours after the history's own beyond which nothing is brought forward: the features have expired by then."""
KNOWN_LAGS_HOURS = tuple(sorted({*LAGS_HOURS, *CARRIED_LAGS_HOURS}))

Floats = NDArray[np.float64]


def bring_forward(columns: Mapping[str, NDArray[Any]], hours: Floats, variable: str) -> dict[str, NDArray[np.float32]]:
    """The history and neighbour columns as of each row's event.

    Args:
        columns: float (n,): `variable` as the event observed it, and the views
            `cell_history` and `cell_neighbours` as they were materialized; NaN where missing.
        hours: when each event was observed, in hours since 1970, minutes as fractions, (n,).
        variable: name of the value's column.

    Returns:
        The columns that change, float32 (n,). Rows whose event is not after the
        history's hour, or more than `FORWARD_HOURS_MAX` after it, stay as they are;
        NaN stays NaN.
    """
    passed = np.asarray(hours, np.float64) - columns[HISTORY_HOUR]
    chosen = np.flatnonzero((passed > 0) & (passed <= FORWARD_HOURS_MAX))
    names = (*(f"lag_{lag}h" for lag in LAGS_HOURS), *HISTORY[len(LAGS_HOURS) :], *NEIGHBOURS)
    found = {name: np.array(columns[name], dtype=np.float32) for name in names}
    if not len(chosen):
        return found
    old = {name: np.asarray(columns[name], np.float64)[chosen] for name in (*HISTORY, *CARRIED, *NEIGHBOURS)}
    new = _forward(old, np.asarray(columns[variable], np.float64)[chosen], passed[chosen])
    for name in names:
        found[name][chosen] = new[name]
    return found


def _forward(old: dict[str, Floats], value: Floats, passed: Floats) -> dict[str, Floats]:
    """The columns of rows that are all to be brought forward by `passed` hours."""
    known = np.stack([old[f"lag_{lag}h"] for lag in KNOWN_LAGS_HOURS])
    new = {f"lag_{lag}h": _at(lag - passed, known, value, passed) for lag in LAGS_HOURS}
    share = passed / MEAN_HOURS
    new["mean_24h"] = old["mean_24h"] + share * (value - new["lag_24h"])
    new["mean_24h_lag_24h"] = old["mean_24h_lag_24h"] + share * (new["lag_24h"] - new["lag_48h"])
    new["min_24h"] = np.minimum(old["min_24h"], value)
    new["max_24h"] = np.maximum(old["max_24h"], value)
    change = value - old["lag_0h"]
    change_a_day_ago = new["lag_24h"] - old["lag_24h"]
    for name in NEIGHBOURS:
        new[name] = old[name] + (change_a_day_ago if name.endswith("_lag_24h") else change)
    return new


def _at(back: Floats, known: Floats, value: Floats, passed: Floats) -> Floats:
    """The value `back` hours before the history's hour (below zero: after it), on the line between what is known."""
    lags = np.array(KNOWN_LAGS_HOURS, np.float64)
    right = np.clip(np.searchsorted(lags, back, side="left"), 1, len(lags) - 1)
    rows = np.arange(len(back))
    start, end = lags[right - 1], lags[right]
    share = (back - start) / (end - start)
    between = known[right - 1, rows] * (1 - share) + known[right, rows] * share
    since = -back / passed  # after the history's hour: on the line from its value to the event's
    return np.where(back >= 0, between, known[0] * (1 - since) + value * since)


def bring_table_forward(table: pa.Table, moments: Sequence[datetime], variable: str) -> pa.Table:
    """The same for a table of features whose observation view is the events' own.

    Args:
        table: a row per event; columns it lacks altogether mean that there is nothing to bring forward.
        moments: when each event was observed, aware.

    Returns:
        The table with its columns replaced; null where a column was missing.
    """
    import pyarrow as pa

    needed = (variable, *HISTORY, *CARRIED, *NEIGHBOURS)
    if not table.num_rows or not set(needed) <= set(table.column_names):
        return table
    columns = {name: table[name].to_numpy() for name in needed}
    hours = np.array([(need_utc(moment) - EPOCH) / HOUR for moment in moments], np.float64)
    for name, values in bring_forward(columns, hours, variable).items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(values, pa.float32(), from_pandas=True))
    return table
