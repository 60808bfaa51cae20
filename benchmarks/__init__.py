"""Benchmarks: each is `make bench NAME=<name>`; docs/performance.md explains them."""
