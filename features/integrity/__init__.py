"""Checks of features: skew, how they are distributed, why an entity has none."""
