"""Inputs mutated from valid ones, thrown at each door through which something of an outsider's comes in."""
