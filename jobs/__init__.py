"""The batch steps: plan, gate, score, publish, train. Airflow calls them; none of them knows Airflow."""
