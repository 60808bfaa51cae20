"""The demonstration: the whole of Almanac on real parts, and a table of what it proved.

It stands outside: it starts the stack with `almanac up`, talks to Airflow's
API, to the lookup service over HTTP and to Kafka through `almanac publish`,
exactly as a person would, and imports none of the parts it exercises.
"""
