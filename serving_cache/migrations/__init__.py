"""The database's history, one file a step under `versions/`; `serving_cache.migrate` runs it."""
