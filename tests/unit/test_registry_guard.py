"""What somebody wrote into Feast's registry is never run by a process of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dill
import pytest
from feast import FeatureStore
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto

from almanac.errors import FeatureError
from almanac.settings import Settings, load_settings
from features.store import apply, feature_store, registry_errors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
KNOWN = "cell_observation"


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    settings = load_settings(state_dir=tmp_path_factory.mktemp("registered"), postgres_url=None, redis_url=None)
    apply(settings)
    return (settings.features_dir / "registry.db").read_bytes()


@pytest.fixture
def at(tmp_path: Path, registered: bytes) -> Settings:
    settings = load_settings(state_dir=tmp_path / "state", postgres_url=None, redis_url=None)
    settings.features_dir.mkdir(parents=True)
    (settings.features_dir / "registry.db").write_bytes(registered)
    return settings


def registry_of(settings: Settings) -> tuple[RegistryProto, Path]:
    path = settings.features_dir / "registry.db"
    found = RegistryProto()
    found.ParseFromString(path.read_bytes())
    return found, path


def stream_view(registry: RegistryProto, target: Path, name: str = KNOWN) -> None:
    """A stream view under the name of a view that the batch reads."""
    (own,) = [view for view in registry.feature_views if view.spec.name == KNOWN]
    made = registry.stream_feature_views.add()
    made.spec.name, made.spec.project = name, own.spec.project
    made.spec.entities.extend(own.spec.entities)
    made.spec.features.extend(own.spec.features)
    made.spec.batch_source.CopyFrom(own.spec.batch_source)
    made.spec.stream_source.CopyFrom(own.spec.stream_source)
    made.spec.user_defined_function.body = dill.dumps(Payload(target))
    if name == KNOWN:
        registry.feature_views.remove(own)


def on_demand_view(registry: RegistryProto, target: Path, *, as_text: bool) -> None:
    (own,) = [view for view in registry.feature_views if view.spec.name == KNOWN]
    made = registry.on_demand_feature_views.add()
    made.spec.name, made.spec.project, made.spec.mode = "computed", own.spec.project, "pandas"
    made.spec.features.extend(own.spec.features)
    function = made.spec.feature_transformation.user_defined_function
    function.name = "run"
    if as_text:
        function.body_text = f"from pathlib import Path\nPath({str(target)!r}).touch()\ndef run(x): return x\n"
    else:
        function.body_text, function.body = "not python at all", dill.dumps(Payload(target))


def named_module(registry: RegistryProto, target: Path) -> None:
    (own,) = [view for view in registry.feature_views if view.spec.name == KNOWN]
    target.with_name("hostile_module.py").write_text(f"from pathlib import Path\nPath({str(target)!r}).touch()\n")
    for source in (own.spec.batch_source, *registry.data_sources):
        source.type, source.data_source_class_type = DataSourceProto.CUSTOM_SOURCE, "hostile_module.Source"
        source.ClearField("file_options")


ROWS: dict[str, Callable[[RegistryProto, Path], None]] = {
    "a stream view under a known name": stream_view,
    "another stream view": lambda registry, target: stream_view(registry, target, "other"),
    "text of an on-demand view": lambda registry, target: on_demand_view(registry, target, as_text=True),
    "an on-demand view's function behind text that fails": lambda registry, target: on_demand_view(
        registry, target, as_text=False
    ),
    "a class of a module": named_module,
}


def read_all(store: FeatureStore) -> None:
    with registry_errors():
        store.get_feature_service("weather_v1")
        for listed in (store.list_all_feature_views, store.list_on_demand_feature_views, store.list_data_sources):
            listed()
        store.registry.get_any_feature_view(KNOWN, store.project)


@pytest.mark.parametrize("row", ROWS)
def test_a_function_in_the_registry_is_refused_and_not_run(
    row: str, at: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "it_ran"
    monkeypatch.syspath_prepend(tmp_path)
    read_all(feature_store(at))  # as it was registered
    registry, path = registry_of(at)
    ROWS[row](registry, target)
    path.write_bytes(registry.SerializeToString())
    with pytest.raises(FeatureError, match=r"Feast's registry (holds a function|names the module)"):
        read_all(feature_store(at))
    assert not target.exists()
    with pytest.raises(FeatureError, match="Feast's registry"):
        apply(at)
    assert not target.exists()


def test_without_the_guard_it_would_run(at: Settings, tmp_path: Path) -> None:
    target = tmp_path / "it_ran"
    registry, path = registry_of(at)
    stream_view(registry, target, "other")
    path.write_bytes(registry.SerializeToString())
    plain = FeatureStore(config=feature_store(at).config)
    with pytest.raises(Exception, match=r".*"):
        plain.list_stream_feature_views()
    assert target.exists()
