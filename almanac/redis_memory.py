"""Whether a Redis keeps what it was given: by what its INFO says. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEEPS_ALL = "noeviction"
"""The `maxmemory-policy` of a Redis that refuses writes when its memory is full, and forgets nothing."""


def why_it_may_evict(info: Mapping[str, Any]) -> str | None:
    """What may be lost and what to do; None of a server that keeps all, or does not say.

    Args:
        info: what INFO answers; `maxmemory_policy` and `evicted_keys` of it.
    """
    policy = info.get("maxmemory_policy", KEEPS_ALL)
    if policy == KEEPS_ALL:
        return None
    return (
        f"maxmemory-policy is {policy}, so it may evict overlays and features ({int(info.get('evicted_keys', 0)):,} "
        f"keys so far): set it to {KEEPS_ALL} and give it enough memory"
    )
