"""The DAG files, `almanac_*.py`, and what they share; `.airflowignore` tells Airflow the one from the other."""
