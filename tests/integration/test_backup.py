"""`almanac backup` and `almanac restore` on real servers: a round trip, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from almanac.clock import floor_hour, utc_now
from almanac.errors import DataError, StackError, UsageError
from almanac.pipeline import Pipeline
from almanac.production.prepare import make_databases
from almanac.settings import Settings, load_settings
from serving_cache import backup as backups
from serving_cache.migrate import known_versions, migrate
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.sync import rebuild_redis
from tests.generations import grid_pipeline, overlay_of, published_generation
from tests.lookups import ROOT, cells_of, declared, environment, running_lookup

SCHEMA_VERSION = known_versions()[-1]
COMMAND_SECONDS_MAX = 120


@dataclass
class World:
    """A database and a state directory of one test's own, and the pipeline in them."""

    settings: Settings
    pipeline: Pipeline
    admin: str
    folder: Path

    @property
    def url(self) -> str:
        return self.settings.need("postgres_url")

    def drop(self) -> None:
        with psycopg.connect(self.admin, autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS backed_up WITH (FORCE)")

    def new_database(self) -> None:
        self.drop()
        make_databases(self.admin, [self.url])

    def publish(self, value: float) -> int:
        """A generation of the last hour in which every prediction is `value`; returns its number."""
        hour = floor_hour(utc_now()) - timedelta(hours=1)
        with PostgresStore(self.url) as store:
            return published_generation(store, self.pipeline, value, hour).generation

    def rebuild_cache(self) -> None:
        """As `almanac rebuild` does."""
        with PostgresStore(self.url) as store, RedisStore(self.settings.need("redis_url")) as cache:
            assert rebuild_redis(self.pipeline, store, cache)

    def count(self, table: str) -> int:
        with psycopg.connect(self.url) as connection:
            row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        assert row is not None
        return int(row[0])

    def run(
        self, *words: str, before: Callable[[], None] | None = None, given: Path = Path(os.devnull)
    ) -> subprocess.CompletedProcess[str]:
        variables = environment(
            self.folder, self.folder / "declarations.py", postgres=self.url, redis=self.settings.need("redis_url")
        )
        with given.open("rb") as source:
            return subprocess.run(
                [sys.executable, "-m", "almanac.cli", *words],
                cwd=ROOT, env=variables, stdin=source, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX,
                check=False, preexec_fn=before,
            )  # fmt: skip

    def answers(self) -> dict[str, Any]:
        """What the lookup service says of every cell, without what depends on the moment of asking."""
        variables = environment(
            self.folder, self.folder / "declarations.py", postgres=self.url, redis=self.settings.need("redis_url")
        )
        with running_lookup(variables, self.folder / "lookup.log") as client:
            body = {"entities": cells_of(self.pipeline)}
            found = client.post(f"/v1/{self.pipeline.name}/entities:lookup", json=body).json()
        for answer in found["answers"]:
            for name in ("age_seconds", "place", "reason"):
                answer.pop(name)
        return dict(found)


@pytest.fixture
def world(server_dir: Path, postgres_url: str, redis_url: str, tmp_path: Path) -> Iterator[World]:
    password = json.loads((server_dir / "postgres-server" / "secrets.json").read_text())["postgres"]
    port = urlsplit(postgres_url).port
    settings = load_settings(
        state_dir=tmp_path / "state",
        postgres_url=f"postgresql://backed_up:word@127.0.0.1:{port}/backed_up",
        redis_url=redis_url,
    )
    pipeline = grid_pipeline()
    made = World(settings, pipeline, f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres", tmp_path)
    declared(tmp_path, f"grid = grid_pipeline({pipeline.name!r})")
    made.new_database()
    migrate(made.url, [pipeline])
    for name in ("models/weather/v0001/model.onnx", "features/weather/static/2026-11-21.parquet"):
        (settings.state_dir / name).parent.mkdir(parents=True)
        (settings.state_dir / name).write_bytes(os.urandom(3000))
    (settings.state_dir / "features" / "weather" / ".2026.parquet.1.writing").write_text("unfinished")
    try:
        yield made
    finally:
        made.drop()


def content(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name.startswith(("models", "features"))}


def test_backup_purge_restore_rebuild_same_answers(world: World) -> None:
    world.publish(1.0)
    world.publish(2.0)
    overlay = overlay_of("17", utc_now() - timedelta(minutes=1), 5)
    with PostgresStore(world.url) as store:
        store.put_overlays(world.pipeline.name, [overlay])
    with psycopg.connect(world.url) as connection:
        connection.execute("CREATE SCHEMA feast")
        connection.execute("CREATE TABLE feast.registry (word text)")
    world.rebuild_cache()
    before, files = world.answers(), content(world.settings.state_dir)
    assert len(before["answers"]) == 64
    assert {answer["source"] for answer in before["answers"]} == {"batch", "stream"}

    file = world.folder / "almanac.backup"
    done = world.run("backup", str(file))
    assert done.returncode == 0, done.stderr
    assert f"schema {SCHEMA_VERSION}, 1 files of models, 1 of features" in done.stdout
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in world.folder.iterdir() if "backup" in path.name) == ["almanac.backup"]

    world.new_database()
    shutil.rmtree(world.settings.state_dir)
    with RedisStore(world.settings.need("redis_url")) as cache:
        cache.clear(world.pipeline.name)
    done = world.run("restore", "-", given=file)
    assert done.returncode == 0, done.stderr
    assert "almanac rebuild" in done.stdout
    assert world.count("feast.registry") == 0
    world.rebuild_cache()
    assert world.answers() == before
    assert content(world.settings.state_dir) == {name: data for name, data in files.items() if ".writing" not in name}
    assert {path.name for path in world.settings.state_dir.iterdir()} == {"models", "features"}
    assert world.publish(3.0) == 3  # life goes on


def test_what_a_kill_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    (tmp_path / ".backup-old").mkdir()
    (tmp_path / ".backup-new").mkdir()
    os.utime(tmp_path / ".backup-old", (0, 0))
    with backups.working_folder(tmp_path) as folder:
        assert {path.name for path in tmp_path.iterdir()} == {".backup-new", folder.name}
    assert [path.name for path in tmp_path.iterdir()] == [".backup-new"]


def test_what_would_be_lost_or_is_in_use_is_refused(world: World) -> None:
    world.publish(1.0)
    file = world.folder / "almanac.backup"
    backups.backup(file, world.settings, utc_now())
    with pytest.raises(UsageError, match="is there already"):
        backups.backup(file, world.settings, utc_now())
    world.publish(2.0)
    with psycopg.connect(world.url) as connection:
        connection.execute("CREATE VIEW another AS SELECT * FROM generations")
    with pytest.raises(UsageError, match=r"the record and models and features of .* would be lost: --replace"):
        backups.restore(file, world.settings, print, replace=False)
    with psycopg.connect(world.url), pytest.raises(UsageError, match=r"1 connections use .*: stop what writes"):
        backups.restore(file, world.settings, print, replace=True)
    assert world.count("generations") == 2

    backups.restore(file, world.settings, print, replace=True)
    assert world.count("generations") == 1
    migrate(world.url, [world.pipeline])
    assert world.publish(5.0) == 2


def rewritten(file: Path, target: Path, change: Callable[[str, bytes], bytes], *, sums: bool = False) -> Path:
    """A copy of a backup with members changed, and their checksums too if `sums`."""
    with tarfile.open(file) as old:
        members = {entry.name: old.extractfile(entry).read() for entry in old}  # type: ignore[union-attr]
    members = {name: change(name, data) for name, data in members.items()}
    if sums:
        manifest = json.loads(members["manifest.json"])
        manifest["checksums"] = {name: hashlib.sha256(members[name]).hexdigest() for name in manifest["checksums"]}
        members["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(target, "w") as new:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            new.addfile(entry, io.BytesIO(data))
    return target


def test_what_is_no_good_backup_changes_nothing(world: World) -> None:
    world.publish(1.0)
    file, other = world.folder / "good", world.folder / "other"
    backups.backup(file, world.settings, utc_now())
    files = content(world.settings.state_dir)

    def refused(path: Path, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words) as raised:
            backups.restore(path, world.settings, print, replace=True)
        assert "\n" not in str(raised.value)
        assert world.count("generations") == 1
        assert content(world.settings.state_dir) == files

    refused(world.folder / "absent", StackError, "absent cannot be used .No such file")
    other.write_text("once upon a time")
    refused(other, DataError, "not a backup")
    other.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(other, DataError, "damaged|cut off")
    flipped = bytearray(file.read_bytes())
    flipped[flipped.index(b"PGDMP") + 2000] ^= 1
    other.write_bytes(flipped)
    refused(other, DataError, r"'record\.dump' is not what was written")

    def newer(name: str, data: bytes) -> bytes:
        return data.replace(f'"schema": "{SCHEMA_VERSION}"'.encode(), b'"schema": "9999"')

    refused(rewritten(file, other, newer), DataError, "schema 9999 of a newer Almanac")
    refused(
        rewritten(file, other, lambda name, data: data.replace(b'"format": 1', b'"format": 7')),
        DataError,
        "newer Almanac",
    )
    half = rewritten(
        file, other, lambda name, data: data[: len(data) // 2] if name == "record.dump" else data, sums=True
    )
    refused(half, StackError, "nothing was changed there")
    with tarfile.open(other, "w") as tar:
        tar.addfile(tarfile.TarInfo("models/../../outside"), io.BytesIO())
    refused(other, DataError, "which no backup has")
    assert not (world.folder / "outside").exists()


def test_a_full_disk_leaves_no_half_backup_and_no_half_restore(world: World) -> None:
    world.publish(1.0)
    (world.settings.state_dir / "models" / "large").write_bytes(bytes(400_000))
    file = world.folder / "almanac.backup"
    for limit in (2_000, 300_000):  # within the dump, within the files
        done = world.run(
            "backup", str(file), before=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        )
        assert done.returncode == StackError.exit_code
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert [path.name for path in world.folder.iterdir() if "backup" in path.name] == []

    done = world.run("backup", str(file))
    assert done.returncode == 0, done.stderr
    files = content(world.settings.state_dir)
    limit = 300_000
    done = world.run(
        "restore", "--replace", str(file), before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert done.returncode == StackError.exit_code
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert content(world.settings.state_dir) == files
    assert world.count("generations") == 1
