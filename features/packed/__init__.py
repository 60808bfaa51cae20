"""Rows of features as bytes in Redis: the codec, keys, and reading and writing them newer-wins."""
