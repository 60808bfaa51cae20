"""`make proofs`: every benchmark and drill in its shortest form, so that a proof which no longer runs is noticed."""
