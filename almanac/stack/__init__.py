"""The embedded stack: real servers on localhost, under one state directory, for `almanac up` and for tests."""
