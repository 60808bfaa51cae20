"""Almanac: predictions computed beforehand and looked up.

The core that every part shares. It imports no vendor client outside the one
module that wraps it, and nothing of `jobs`, `streaming` or `serving_cache`.
"""

__version__ = "0.1.0"
