"""The protocol of generations on a virtual clock: see `world.py`; `python -m tests.simulator --seeds 100000`."""
