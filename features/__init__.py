"""Features: sources of observations, offline and online retrieval. The only callers of Feast."""
