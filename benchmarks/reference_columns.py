"""The 30 columns of the reference pipeline, and how they come from a field of hourly values. Pure NumPy.

Like a weather grid's: the value now and the hour of day, the hours before, the
cells around, a place. Nothing here is used outside the benchmarks, so that
they compare the same work however the weather pipeline changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LAGS_HOURS = tuple(range(1, 15))
DISTANCES_CELLS = (1, 2, 4)
SIDES = {"north": (-1, 0), "south": (1, 0), "west": (0, -1), "east": (0, 1)}
HISTORY_HOURS = max(LAGS_HOURS)

PUSHED_VIEW = "reference_now"
STATIC_VIEW = "reference_place"
VALUE = "value"
VIEWS: dict[str, tuple[str, ...]] = {
    PUSHED_VIEW: (VALUE, "hour_sin", "hour_cos"),
    "reference_lags": tuple(f"lag_{hours}h" for hours in LAGS_HOURS),
    "reference_around": tuple(f"{side}_{cells}" for cells in DISTANCES_CELLS for side in SIDES),
    STATIC_VIEW: ("latitude",),
}
COLUMNS = tuple(column for view in VIEWS.values() for column in view)

Floats = NDArray[np.float32]


def columns_at(field: Floats, times: NDArray[Any], hour: int, latitude: Floats) -> dict[str, Floats]:
    """All columns of every cell at one hour of a block.

    Args:
        field: float32 (hours, rows, cols).
        times: datetime64 of the hours.
        hour: index of the hour, at least `HISTORY_HOURS`.
        latitude: float32 (rows,).

    Returns:
        float32 (rows x cols,) for each of `COLUMNS`.
    """
    now = field[hour]
    angle = float((times[hour] - times[hour].astype("datetime64[D]")) / np.timedelta64(1, "h")) * (2 * np.pi / 24)
    found = {
        VALUE: now,
        "hour_sin": np.full_like(now, np.sin(angle)),
        "hour_cos": np.full_like(now, np.cos(angle)),
        **{f"lag_{hours}h": field[hour - hours] for hours in LAGS_HOURS},
        "latitude": np.repeat(latitude[:, None], now.shape[1], axis=1),
    }
    for cells in DISTANCES_CELLS:
        for side, (down, right) in SIDES.items():
            found[f"{side}_{cells}"] = _shifted(now, down * cells, right * cells)
    return {name: np.ascontiguousarray(found[name].ravel(), dtype=np.float32) for name in COLUMNS}


def _shifted(field: Floats, down: int, right: int) -> Floats:
    rows = np.clip(np.arange(field.shape[0]) + down, 0, field.shape[0] - 1)
    cols = np.clip(np.arange(field.shape[1]) + right, 0, field.shape[1] - 1)
    return field[rows[:, None], cols[None, :]]
