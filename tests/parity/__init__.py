"""Parity: batch, stream and fresh computation give one list, and one value, to the bit, at one moment."""
