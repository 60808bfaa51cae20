"""Features of interactions: the columns of the views, and an entity's history at a moment. NumPy alone.

Times are whole microseconds since 1970 in UTC, days whole days since 1970, money
whole hundredths, so that no sum depends on the order in which it is made.
"""

from __future__ import annotations

HISTORY = {
    "bought_items": "strings",
    "bought_at": "int64s",
    "bought_counts": "int64s",
    "basket_items": "strings",
    "days": "int64s",
    "day_orders": "int64s",
    "day_lines": "int64s",
    "day_units": "int64s",
    "day_spend": "int64s",
    "orders": "int64",
    "first_at": "int64",
    "seen": "int64s",
    "seen_at": "int64s",
    "seen_floor": "int64",
}
"""Columns of an entity's history, with what they hold: see `features.interactions_fold.Row`."""

STATS = {
    "sold_7d": "float32",
    "sold_30d": "float32",
    "sold_90d": "float32",
    "buyers_30d": "float32",
    "price": "float32",
    "days_on_sale": "float32",
    "days_since_sold": "float32",
    "available": "float32",
}
"""Columns of an item's numbers: baskets that held it, who took it, the price last paid, 1 if it is in the range."""

TOGETHER = {"together_items": "strings", "together_weights": "float32s"}
"""Columns of the items that go together with one."""

ANY_ITEM = "*"
"""The key that stands for any item: what goes together with it is what is popular."""

WINDOWS_DAYS = (7, 30, 90)
BOUGHT_MAX = 100
"""Items of an entity's history."""
DAYS_KEPT = 90
SEEN_MAX = 64
"""Events that a history is known to hold; older ones are taken as held."""
TOGETHER_MAX = 20
"""Items that go together with one."""
POPULAR_MAX = 100
"""Items that are popular."""
