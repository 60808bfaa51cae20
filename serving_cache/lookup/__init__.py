"""The lookup service: answers with the freshest prediction it can stand behind, and says how old it is.

Started with `python -m serving_cache.lookup`. Nothing here imports Airflow,
Feast or pandas, and what is slow to import (drivers of the stores) is imported
after the service has begun to listen.

    __main__.py   start, port check, signals
    app.py        RSGI: bytes in, bytes out, never a traceback
    routes.py     who answers at which path
    openapi.py    the document of these paths
    web.py        requests, responses, the router, RFC 9457 problems
    service.py    one lookup: places in order, the ladder, second opinions
    places.py     what a place is, its time limit; breaker.py: its circuit breaker
    redis_place.py, postgres_place.py, candidates.py   the two places
    redis_link.py   the connection to Redis that all readers share; postgres_connections.py: those to Postgres
    batching.py   reads of several callers made together
    answers.py    the JSON that callers read, and the caching headers
    monitor.py    the clock that notices its own steps
    parsing.py    text of callers to entities, positions and durations
"""
