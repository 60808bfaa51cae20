"""The generation store on Postgres (the record) and Redis (the cache), and the lookup service on top of it.

records.py     what the stores read and write
layout.py      names of tables and keys, and how records look as bytes
postgres.py    PostgresStore, made of postgres_*.py
redis.py       RedisStore
sync.py        makes Redis follow Postgres; reconciler.py does so for ever
migrate.py     brings the database to this version; migrations/ says how
lookup/        the lookup service
"""
