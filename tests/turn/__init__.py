"""The turn of the hour, made to happen before, within and after each stage of both demonstrations.

An hour that turns does four things at once. The clock passes it; the source has an hour more; what a forecast said of
it has expired; and Airflow starts a scheduled run of every DAG. Here the clock of Almanac's own processes is ahead of
the machine's by what a file says, so that it can be moved on, and `scheduler.py` starts what Airflow's scheduler would.
"""
