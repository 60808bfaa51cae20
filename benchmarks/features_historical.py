"""Parts `historical_300k` and `historical_10m` of `make bench NAME=features`."""

from __future__ import annotations

from benchmarks.features_parts import Part

PARTS: tuple[Part, ...] = ()
