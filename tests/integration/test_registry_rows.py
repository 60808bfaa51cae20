"""A row of Feast's registry in Postgres that is no valid definition is refused by its name, and says what to do."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from feast.protos.feast.core.DataSource_pb2 import DataSource

from almanac.errors import FeatureError
from almanac.settings import load_settings
from features.store import apply, feature_store, registry_errors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def test_a_row_that_is_no_valid_definition_is_named(tmp_path: Path, postgres_url: str) -> None:
    settings = load_settings(state_dir=tmp_path / "state", postgres_url=postgres_url, redis_url=None)
    apply(settings)
    store = feature_store(settings)
    name = store.registry.list_data_sources(store.project)[0].name
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        where = "feast.data_sources WHERE data_source_name = %s"
        before = connection.execute(f"SELECT data_source_proto FROM {where}", (name,)).fetchone()
        assert before is not None
        foreign = DataSource.FromString(bytes(before[0]))
        foreign.type = DataSource.INVALID
        foreign.ClearField("data_source_class_type")
        try:
            for data in (b"\xff\xff\xff", foreign.SerializeToString()):
                connection.execute(
                    "UPDATE feast.data_sources SET data_source_proto = %s WHERE data_source_name = %s", (data, name)
                )
                says = f"a row in data_sources that is no valid definition, '{name}'.*delete it.*almanac feast apply"
                with pytest.raises(FeatureError, match=says), registry_errors():
                    store.registry.list_data_sources(store.project)
                with pytest.raises(FeatureError, match=says), registry_errors():
                    list(feature_store(settings).registry.list_data_sources(store.project))
                with pytest.raises(FeatureError, match=says), registry_errors():
                    store.registry.get_data_source(name, store.project)
        finally:
            connection.execute(
                "UPDATE feast.data_sources SET data_source_proto = %s WHERE data_source_name = %s", (before[0], name)
            )
