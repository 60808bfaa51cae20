"""One module for each door, with a `DOOR`; see `tests.fuzz.runner`."""
