"""Bringing the newest offline row of each entity online."""
