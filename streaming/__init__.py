"""The Kafka side: events in, predictions and feature rows out, what cannot be handled kept as dead letters."""
