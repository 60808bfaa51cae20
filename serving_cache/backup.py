"""What cannot be made again, in one file: the record, the models, the offline features; and back from it.

A backup is a tar file of

1. `manifest.json`: what made it and when, and a checksum of every other member;
2. `record.dump`: the database of `postgres_url` in pg_dump's own format (Feast's registry is in it);
3. `models/…` and `features/…`: those folders of the state directory, archived events included.

The dump is made first: what it names of models is then among the models that follow. Files
of both folders are only ever replaced whole, so that a copy made under load is a good one.
Redis is not in it (`almanac rebuild`), nor is Kafka, whose topics keep a week of
events, nor Airflow's metadata, by which nothing is decided.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from psycopg.pq import Conninfo

from almanac.clock import format_time
from almanac.errors import DataError, StackError, Unavailable, UsageError
from almanac.postgres_url import postgres_address
from almanac.settings import WORKING_PREFIX, Settings
from almanac.stack import postgres
from serving_cache.backup_archive import DUMP, FOLDERS, MANIFEST, Manifest, unpack
from serving_cache.migrate import VERSION_TABLE, known_versions
from serving_cache.postgres_client import Client, described

DUMP_SECONDS_MAX = 6 * 3600
LINE_CHARACTERS_MAX = 300
LEFT_SECONDS_MIN = 24 * 3600
"""Longer than a dump may take: a working folder that old has no owner."""

# Everything of the role's in this database, whatever an older or newer version made there; not the database.
DROPS = "SET client_min_messages = warning; DROP OWNED BY CURRENT_USER CASCADE;\n"

Tell = Callable[[str], None]


def backup(path: Path, settings: Settings, now: datetime) -> Manifest:
    """Write a backup, all or nothing; readable by its owner alone (mode 0600).

    Raises:
        StackError: the file cannot be written, or pg_dump failed.
        Unavailable: Postgres does not answer.
        UsageError: the file is there already.
    """
    url = settings.need("postgres_url")
    if path.exists():
        raise UsageError(f"{path} is there already: name another file, or remove it")
    schema = schema_of(url)
    draft = path.with_name(f".{path.name}.{os.getpid()}.writing")
    with _file_errors(path), _removed_after(draft), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        dump = Path(folder) / DUMP
        _run("pg_dump", url, ["--format=custom", "--no-owner", "--no-privileges", f"--file={dump}"])
        checksums: dict[str, str] = {}
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                checksums[DUMP] = _add(tar, dump, DUMP)
                for name, source in _files(settings):
                    with suppress(FileNotFoundError):  # replaced or retired since it was listed
                        checksums[name] = _add(tar, source, name)
                manifest = Manifest(format_time(now), version("almanac"), schema, checksums)
                data = manifest.to_bytes()
                entry = tarfile.TarInfo(MANIFEST)
                entry.size, entry.mode = len(data), 0o600
                tar.addfile(entry, io.BytesIO(data))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    return manifest


def _files(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Name in the backup and path of every file of the folders; unfinished ones (hidden) and locks are left out."""
    for folder in FOLDERS:
        root = settings.state_dir / folder
        for path in sorted(root.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.is_file() and not path.is_symlink() and not hidden and path.suffix != ".lock":
                yield f"{folder}/{path.relative_to(root).as_posix()}", path


def _add(tar: tarfile.TarFile, source: Path, name: str) -> str:
    """Add a file as it is now; returns its checksum."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        entry = tarfile.TarInfo(name)
        status = os.fstat(file.fileno())
        entry.size, entry.mtime, entry.mode = status.st_size, int(status.st_mtime), 0o600
        tar.addfile(entry, file)
    return digest


def schema_of(url: str) -> str | None:
    """The schema version of a database; None where there is none.

    Raises:
        Unavailable: Postgres does not answer.
    """
    with Client(url) as client:
        if client.query("SELECT to_regclass(%s)", (VERSION_TABLE,))[0][0] is None:
            return None
        rows = client.query(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608 - a constant
    return str(rows[0][0]) if rows else None


def restore(path: Path, settings: Settings, tell: Tell, *, replace: bool) -> Manifest:
    """Put a backup in the place of what is there.

    Everything is checked before anything is changed: the file against its checksums, the target for
    being empty (or `replace`) and for nobody using it. The record changes in one transaction; then the
    folders are swapped, and what they replaced is removed last.

    Raises:
        DataError: the file is damaged, or no backup, or of a newer version.
        StackError: Postgres refused (the record is then as before), or files cannot be written.
        Unavailable: Postgres does not answer.
        UsageError: the target holds data and `replace` was not asked for, or it is in use.
    """
    url = settings.need("postgres_url")
    with _file_errors(path), working_folder(settings.state_dir) as draft:
        manifest = unpack(path, draft)
        if manifest.schema not in (None, *known_versions()):
            raise DataError(f"{path} has the schema {manifest.schema} of a newer Almanac: restore it with that one")
        _check_target(url, settings, replace)
        tell(f"{path} of {manifest.made_at} is whole; restoring the record")
        _restore_record(url, draft)
        for name in FOLDERS:
            _swap(draft / name, settings.state_dir / name, draft / f"{name}.former")
    return manifest


def _check_target(url: str, settings: Settings, replace: bool) -> None:
    with Client(url) as client:
        holds = client.query("SELECT to_regclass('generations')")[0][0] is not None
        if holds:
            holds = client.query("SELECT EXISTS (SELECT FROM generations)")[0][0]
        users = client.query(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend'"
        )[0][0]
    folders = [name for name in FOLDERS if any((settings.state_dir / name).glob("*"))]
    if (holds or folders) and not replace:
        what = " and ".join([*(["the record"] if holds else []), *folders])
        raise UsageError(f"{what} of {settings.state_dir} would be lost: --replace replaces them by the backup's")
    if users:
        raise UsageError(
            f"{users} connections use the database at {described(url)}: stop what writes and reads there first "
            "(`almanac stop airflow-scheduler stream reconciler lookup monitor`)"
        )


def _restore_record(url: str, draft: Path) -> None:
    """Everything of the database replaced by the dump's, in one transaction."""
    script, drops = draft / "record.sql", draft / "drops.sql"
    _run("pg_restore", url, ["--no-owner", "--no-privileges", f"--file={script}", str(draft / DUMP)])
    drops.write_text(DROPS)
    _run("psql", url, [
        "--no-psqlrc", "--quiet", "--output=/dev/null", "--single-transaction", "--set=ON_ERROR_STOP=1",
        f"--file={drops}", f"--file={script}",
    ])  # fmt: skip
    script.unlink()


def _swap(new: Path, target: Path, former: Path) -> None:
    new.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(former)
    new.rename(target)


def environment_of(url: str) -> dict[str, str]:
    """A database for Postgres's programs: libpq's variable of each parameter that the URL has.

    Those without a variable, such as `keepalives`, only say when a silent connection is given up.

    Raises:
        UsageError: the URL cannot be read.
    """
    variables = {option.keyword.decode(): option.envvar for option in Conninfo.get_defaults()}
    found = postgres.environment()
    for name, value in postgres_address(url).parameters.items():
        if variable := variables.get(name):
            found[variable.decode()] = value
    return {**found, "PGCONNECT_TIMEOUT": str(postgres.CONNECT_SECONDS_MAX)}


def _run(program: str, url: str, arguments: list[str]) -> None:
    """Run one of Postgres's programs on a database; the password goes by the environment.

    Raises:
        StackError: it failed; quotes its last line.
    """
    try:
        done = subprocess.run(
            [str(postgres.binaries() / program), "--no-password", *arguments],
            env=environment_of(url), capture_output=True, text=True, timeout=DUMP_SECONDS_MAX, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise StackError(
            f"{program} of {described(url)} took longer than {DUMP_SECONDS_MAX:,} s: see that server"
        ) from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        telling = [line for line in lines if "error" in line.lower()] or lines
        reason = telling[0].strip()[:LINE_CHARACTERS_MAX]
        if "connect" in reason or "server closed" in reason:
            raise Unavailable(f"Postgres at {described(url)} did not answer ({reason}): see `almanac status`")
        raise StackError(f"{program} of {described(url)} failed ({reason}): nothing was changed there")


@contextmanager
def _removed_after(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def working_folder(state_dir: Path) -> Iterator[Path]:
    """A folder of the state directory for what is under way, removed afterwards; so is what a kill left long ago.

    Raises:
        StackError: the state directory cannot be written.
    """
    with _file_errors(state_dir):
        state_dir.mkdir(parents=True, exist_ok=True)
        for left in state_dir.glob(f"{WORKING_PREFIX}*"):
            if time.time() - left.stat().st_mtime > LEFT_SECONDS_MIN:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=state_dir, prefix=WORKING_PREFIX) as folder:
            yield Path(folder)


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """A full disk, a missing folder and the like, as one line."""
    try:
        yield
    except OSError as error:
        raise StackError(
            f"{error.filename or path} cannot be used ({error.strerror or error}): make room or name another file"
        ) from None


def summary(manifest: Manifest) -> dict[str, Any]:
    """What a person wants to know of a backup."""
    counts = {folder: sum(name.startswith(f"{folder}/") for name in manifest.checksums) for folder in FOLDERS}
    return {"made_at": manifest.made_at, "almanac": manifest.almanac, "schema": manifest.schema, **counts}
