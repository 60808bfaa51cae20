"""State directories that are older, newer, foreign, read-only or full: `almanac up` says so, and harms nothing."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psycopg
import pytest
from alembic import command

from almanac.errors import StackError, UsageError
from almanac.production.prepare import make_databases
from almanac.settings import PROJECT_ROOT, settings
from almanac.stack import postgres, state
from almanac.stack.places import Places
from serving_cache import migrate as migrations
from serving_cache.postgres import PostgresStore
from tests.generations import NOON, grid_pipeline, overlay_of, published_generation

COMMAND_SECONDS_MAX = 120


def up(folder: Path, only: str = "redis", limit: int | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
    """`almanac up --detach` on a state directory; `limit` stands in for a full disk."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ALMANAC_")}
    variables = {"ALMANAC_STATE_DIR": str(folder), "ALMANAC_CACHE_DIR": str(settings().cache_dir), **changes}
    before = None if limit is None else (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    return subprocess.run(
        [sys.executable, "-m", "almanac.cli", "up", "--detach", "--only", only],
        cwd=PROJECT_ROOT, env={**inherited, **variables}, capture_output=True, text=True,
        timeout=COMMAND_SECONDS_MAX, check=False, preexec_fn=before,
    )  # fmt: skip


def refusal(done: subprocess.CompletedProcess[str], code: int = StackError.exit_code) -> str:
    """The only line that a refused `up` ends with."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("almanac: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_directory_without_a_version_is_brought_up_to_date(tmp_path: Path) -> None:
    told: list[str] = []
    places = Places.of(tmp_path)
    state.ensure_usable(places, (), told.append)
    assert told == []  # nothing is there: new
    places.state.unlink()
    (tmp_path / "secrets.json").write_text("{}")
    assert state.version_of(places) == 0
    state.ensure_usable(places, (), told.append)
    assert [state.version_of(places), len(told)] == [state.STATE_VERSION, 1]
    assert f"is of state version 0: bringing it to {state.STATE_VERSION}" in told[0]
    state.ensure_usable(places, (), told.append)
    assert len(told) == 1
    assert set(state.STEPS) == set(range(state.STATE_VERSION))


def test_newer_foreign_and_damaged_directories_are_refused_untouched(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text(json.dumps({"version": 99, "almanac": "9.0"}))
    message = refusal(up(tmp_path))
    assert "newer Almanac (state version 99, this one knows" in message
    assert "ALMANAC_STATE_DIR" in message
    assert json.loads(file.read_text())["version"] == 99
    assert not (tmp_path / "redis").exists()

    file.write_text("{")
    with pytest.raises(StackError, match=r"state\.json cannot be read"):
        state.version_of(Places.of(tmp_path))
    file.unlink()

    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("16\n")
    with pytest.raises(
        StackError, match=rf"PostgreSQL 16, this Almanac brings {postgres.major_version()}: make a backup"
    ):
        state.ensure_usable(Places.of(tmp_path), ("postgres",), print)
    state.ensure_usable(Places.of(tmp_path), ("redis",), print)  # another server's data does not matter


def test_a_read_only_or_full_place_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(up(Path("/sys/almanac")))  # a file system that nobody may write to, root included
    assert message.startswith("almanac: /sys/almanac cannot be used (")
    assert "set ALMANAC_STATE_DIR" in message

    for limit in (0, 100):
        message = refusal(up(tmp_path, limit=limit))
        assert f"{tmp_path} cannot be written (File too large): make room" in message

    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(3_000_000))
    with pytest.raises(StackError, match=r"only 3 MB are free for .*, a start takes up to 537: make room"):
        state.ensure_usable(Places.of(tmp_path), (), print)


def test_a_taken_port_and_a_missing_secret_stop_everything_before_it_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        message = refusal(up(tmp_path, "redis,postgres,reconciler", ALMANAC_METRICS_PORT=port))
    assert port in message
    assert "ALMANAC_METRICS_PORT" in message
    absent = tmp_path / "absent"
    message = refusal(up(tmp_path, ALMANAC_POSTGRES_URL_FILE=str(absent)), UsageError.exit_code)
    assert f"{absent} (ALMANAC_POSTGRES_URL_FILE) cannot be read" in message
    assert not (tmp_path / "postgres" / "data").exists()


def test_a_record_of_older_migrations_is_brought_up_to_date_and_answers(
    server_dir: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = json.loads((server_dir / "postgres-server" / "secrets.json").read_text())["postgres"]
    port = urlsplit(postgres_url).port
    admin = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"
    url = f"postgresql://older:word@127.0.0.1:{port}/older"
    pipeline = grid_pipeline()
    versions = migrations.known_versions()
    make_databases(admin, [url])
    try:
        migrations.migrate(url, [pipeline])
        with PostgresStore(url) as store:
            published_generation(store, pipeline, 1.0)
            published_generation(store, pipeline, 2.0)
            store.put_overlays(pipeline.name, [overlay_of("3", NOON, 9)])
        with monkeypatch.context() as older:  # what was written is taken back to the tables of the first version
            older.setattr(command, "upgrade", lambda config, _: command.downgrade(config, versions[0]))
            assert migrations.migrate(url, []) == versions[0]
        assert migrations.migrate(url, [pipeline]) == versions[-1]
        assert migrations.migrate(url, [pipeline]) == versions[-1]
        with PostgresStore(url) as store, psycopg.connect(url) as connection:
            assert [found.generation for found in store.generations(pipeline.name, 9)] == [2, 1]
            assert len(store.overlays(pipeline.name, "weather-v1", NOON)) == 1
            row = connection.execute(f"SELECT count(*), min(t2m_1h) FROM {pipeline.name}_current").fetchone()
            assert row == (64, 2.0)
            assert published_generation(store, pipeline, 3.0).generation == 3
            connection.execute("UPDATE almanac_schema_version SET version_num = '9999'")
        with pytest.raises(UsageError, match=r"does not fit this version of Almanac .*: upgrade Almanac"):
            migrations.migrate(url, [pipeline])
    finally:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS older WITH (FORCE)")
            connection.execute("DROP ROLE IF EXISTS older")
