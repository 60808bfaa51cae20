from __future__ import annotations

import hashlib
import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from almanac import registry as registry_module
from almanac.errors import ModelError, UnknownModel, UsageError
from almanac.manifest import Description, Input, Metric, Parity, Reference, Window
from almanac.registry import Registry

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FILES = {"model.onnx": b"a graph", "golden.parquet": b"rows"}
DESCRIPTION = Description(
    features="weather_v1",
    inputs=(Input(name="t2m"), Input(name="lag_1h")),
    outputs=("t2m_1h",),
    training=Window(start=datetime(2026, 1, 1, tzinfo=UTC), end=datetime(2026, 2, 1, tzinfo=UTC)),
    held_out=Window(start=datetime(2026, 2, 1, tzinfo=UTC), end=datetime(2026, 2, 8, tzinfo=UTC)),
    rows=1000,
    seed=7,
    parity=Parity(rows=10, difference_max=1e-5, tolerance=1e-3),
    metrics={"t2m_1h": Metric(mae=0.2, baselines={"as_now": 0.5, "same_hour_yesterday": 0.4}, rows=50)},
    references={"t2m_1h": Reference(weights={"t2m": 1.0}, damping=1.0)},
    libraries={"lightgbm": "4.7.0"},
)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "models")


def test_a_version_comes_back_as_it_was_registered(registry: Registry) -> None:
    made = registry.register("weather", FILES, DESCRIPTION, now=NOW)
    assert (made.id, made.version, made.path.name) == ("weather-v1", 1, "v0001")
    found = registry.resolve("weather@1")
    assert found == made
    assert found.read("golden.parquet") == b"rows"
    assert found.hash == hashlib.sha256(b"a graph").hexdigest()
    assert found.manifest.created_at == NOW
    assert found.manifest.inputs == DESCRIPTION.inputs
    assert found.manifest.metrics["t2m_1h"].ratio == pytest.approx(0.5)
    assert json.loads((made.path / "manifest.json").read_text())["files"].keys() == FILES.keys()


def test_versions_count_up_and_aliases_move(registry: Registry) -> None:
    for _ in range(3):
        registry.register("weather", FILES, DESCRIPTION, now=NOW)
    assert [version.id for version in registry.versions("weather")] == ["weather-v1", "weather-v2", "weather-v3"]
    assert registry.names() == ("weather",)
    registry.set_alias("weather", "champion", 3)
    registry.set_alias("weather", "challenger", 2)
    registry.set_alias("weather", "champion", 1)
    assert registry.resolve("weather@champion").version == 1
    assert registry.aliases("weather") == {"champion": 1, "challenger": 2}


def test_unknown_names_say_what_there_is(registry: Registry) -> None:
    with pytest.raises(UnknownModel, match=r"no model 'weather' \(it has none\): train it"):
        registry.resolve("weather@champion")
    registry.register("weather", FILES, DESCRIPTION, now=NOW)
    registry.set_alias("weather", "champion", 1)
    with pytest.raises(UnknownModel, match=r"'best' \(versions: 1; aliases: champion\)"):
        registry.resolve("weather@best")
    with pytest.raises(UnknownModel, match="no version or alias '7'"):
        registry.resolve("weather@7")
    with pytest.raises(UnknownModel, match="no version or alias '2'"):
        registry.set_alias("weather", "champion", 2)
    with pytest.raises(UnknownModel, match=r"no model 'shop' \(it has weather\)"):
        registry.versions("shop")
    for reference in ("weather", "weather@", "../weather@1", "@1"):
        with pytest.raises(UnknownModel):
            registry.resolve(reference)


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_changed_file_is_refused(registry: Registry, file: str) -> None:
    made = registry.register("weather", FILES, DESCRIPTION, now=NOW)
    (made.path / file).write_bytes(b"something else")
    with pytest.raises(ModelError, match=f"model weather-v1: {file} was changed after it was registered"):
        registry.resolve("weather@1")
    (made.path / file).unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        registry.resolve("weather@1")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest | {"version": 2},
        lambda manifest: manifest | {"name": "shop"},
        lambda manifest: manifest | {"format": 99},
        lambda manifest: manifest | {"outputs": "t2m_1h"},
        lambda manifest: manifest | {"files": {"golden.parquet": "00"}},
        lambda manifest: manifest | {"files": manifest["files"] | {"../../secret": "00"}},
        lambda manifest: {},
        lambda manifest: [],
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(registry: Registry, change) -> None:  # type: ignore[no-untyped-def]
    made = registry.register("weather", FILES, DESCRIPTION, now=NOW)
    path = made.path / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ModelError, match=r"manifest\.json"):
        registry.resolve("weather@1")


def test_broken_aliases_are_refused_with_the_remedy(registry: Registry) -> None:
    made = registry.register("weather", FILES, DESCRIPTION, now=NOW)
    (made.path.parent / "aliases.json").write_text('{"champion": "one"}')
    with pytest.raises(ModelError, match=r"almanac models weather --alias champion="):
        registry.resolve("weather@champion")
    assert registry.resolve("weather@1") == made


def test_a_failed_write_leaves_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register("weather", FILES, DESCRIPTION, now=NOW)
    before = sorted(path.name for path in (registry.root / "weather").iterdir())

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry_module, "_write", full)
    with pytest.raises(OSError, match="No space"):
        registry.register("weather", FILES, DESCRIPTION, now=NOW)
    assert sorted(path.name for path in (registry.root / "weather").iterdir()) == before
    assert [version.version for version in registry.versions("weather")] == [1]


def test_writers_at_once_get_versions_of_their_own(registry: Registry) -> None:
    made: list[int] = []

    def write() -> None:
        made.append(registry.register("weather", FILES, DESCRIPTION, now=NOW).version)

    writers = [threading.Thread(target=write) for _ in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
    assert sorted(made) == [1, 2, 3, 4, 5, 6]
    assert len(registry.versions("weather")) == 6


def test_limits(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"has model\.onnx"):
        registry.register("weather", {"golden.parquet": b""}, DESCRIPTION, now=NOW)
    with pytest.raises(UsageError, match="cannot be a file"):
        registry.register("weather", {**FILES, "../escape": b""}, DESCRIPTION, now=NOW)
    with pytest.raises(UsageError, match="cannot be a file"):
        registry.register("weather", {**FILES, "manifest.json": b""}, DESCRIPTION, now=NOW)
    monkeypatch.setattr(registry_module, "VERSIONS_MAX", 1)
    registry.register("weather", FILES, DESCRIPTION, now=NOW)
    with pytest.raises(UsageError, match="the most there can be"):
        registry.register("weather", FILES, DESCRIPTION, now=NOW)
    monkeypatch.setattr(registry_module, "FILE_BYTES_MAX", 3)
    with pytest.raises(UsageError, match="more than 3"):
        registry.register("weather", FILES, DESCRIPTION, now=NOW)
    with pytest.raises(ModelError, match="more than 3 bytes"):
        registry.resolve("weather@1")


@pytest.mark.parametrize("alias", ["3", "Best", "", "a b"])
def test_an_alias_cannot_be_taken_for_a_version(registry: Registry, alias: str) -> None:
    registry.register("weather", FILES, DESCRIPTION, now=NOW)
    with pytest.raises(UsageError, match="must match"):
        registry.set_alias("weather", alias, 1)


def test_an_alias_is_moved_only_from_what_it_is_thought_to_name(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    first, second = (registry.register("weather", FILES, DESCRIPTION, now=NOW).version for _ in range(2))
    assert not registry.set_alias("weather", "champion", second, instead_of=first)
    assert registry.aliases("weather") == {}
    assert registry.set_alias("weather", "champion", first, instead_of=0)
    assert not registry.set_alias("weather", "champion", second, instead_of=0)
    assert registry.set_alias("weather", "champion", second, instead_of=first)
    assert registry.aliases("weather") == {"champion": second}
