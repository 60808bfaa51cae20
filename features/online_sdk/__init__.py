"""Feast's interface of an online store, over packed values; `features.online_store` is its face."""
