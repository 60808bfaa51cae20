"""Offline features: read point in time as training and batch do, and Feast's interface over the join."""
