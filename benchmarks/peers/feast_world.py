"""Feast as its own documentation sets it up: files through DuckDB, Redis online, a registry file; no Almanac."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float32

PROJECT = "peer"
SERVICE = "reference"


def configuration(world: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What would stand in feature_store.yaml."""
    parts = urlsplit(world["redis"])
    connection = f"{parts.hostname}:{parts.port},password={unquote(parts.password or '')},db=0"
    return {
        "project": PROJECT,
        "provider": "local",
        "registry": str(folder / "peer-registry.db"),
        "offline_store": {"type": "duckdb"},
        "online_store": {"type": "redis", "connection_string": connection},
        "entity_key_serialization_version": 3,
    }


def open_store(world: dict[str, Any]) -> FeatureStore:
    """A store whose registry, below the working directory, has the views and the service of the world."""
    folder = Path(os.getcwd())
    store = FeatureStore(config=RepoConfig(**configuration(world, folder), repo_path=folder))
    cell = Entity(name="cell", join_keys=["cell_id"], value_type=ValueType.INT64)
    views = []
    for name, columns in world["views"].items():
        source = FileSource(
            name=f"{name}_file", path=f"{world['files'][name]}/*.parquet", timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        )  # fmt: skip
        ttl = timedelta(0) if name == world["static_view"] else timedelta(hours=12)
        fields = [Field(name=column, dtype=Float32) for column in columns]
        views.append(FeatureView(name=name, entities=[cell], schema=fields, source=source, ttl=ttl))
    store.apply([cell, *views, FeatureService(name=SERVICE, features=views)])
    return store


def service_of(store: FeatureStore) -> FeatureService:
    """The service that `open_store` registered."""
    return store.get_feature_service(SERVICE)


def postgres_url(world: dict[str, Any]) -> str:
    """SQLAlchemy's URL through psycopg 3."""
    return str(world["postgres"]).replace("postgresql://", "postgresql+psycopg://", 1)
