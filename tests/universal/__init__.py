"""Feast's own universal tests, run against our stores; see `tests/universal/harness.py`."""
