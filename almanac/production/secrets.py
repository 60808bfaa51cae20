"""Make the secret files that docker-compose.yml names: `python -m almanac.production.secrets`.

Each file is one line, made of random words; a file that is there is left as it is, so
that running it again adds what a new version needs and changes nothing else. To change
a secret, remove its file and those that are made of it, run this again, and start the
services anew (docs/operations.md says which).

A container engine mounts such a file as it lies on the host, with its owner and mode;
processes in containers are other users. So the folder is open to its owner alone (0700),
and the files to its owner and group (0640): containers run with that group's number,
which this command prints as a line for `.env`. With `--mode 0600` the files are for
those who run every container as the files' owner.
"""

from __future__ import annotations

import argparse
import base64
import grp
import os
import secrets
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from almanac.errors import AlmanacError, StackError, UsageError
from almanac.plain_text import one_line
from almanac.settings import PROJECT_ROOT, read_secret

FOLDER = PROJECT_ROOT / "deploy" / "secrets"
FOLDER_MODE = 0o700
MODES = (0o640, 0o600)
PASSWORD_BYTES = 24
KEY_BYTES = 32
JWT_BYTES = 64

Make = Callable[[Mapping[str, str]], str]


def _password(known: Mapping[str, str]) -> str:
    return secrets.token_urlsafe(PASSWORD_BYTES)


def _fernet_key(known: Mapping[str, str]) -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode()


# In this order: a URL is made of a password before it. Passwords are safe in URLs as they are.
FILES: Mapping[str, Make] = {
    "postgres_password": _password,
    "postgres_admin_url": lambda known: f"postgresql://postgres:{known['postgres_password']}@postgres:5432/postgres",
    "postgres_url": lambda known: f"postgresql://almanac:{_password(known)}@postgres:5432/almanac",
    "airflow_database_url": lambda known: f"postgresql+psycopg2://airflow:{_password(known)}@postgres:5432/airflow",
    "airflow_password": _password,
    "airflow_fernet_key": _fernet_key,
    "airflow_api_key": _password,
    "airflow_jwt_secret": lambda known: secrets.token_hex(JWT_BYTES),
    "redis_password": _password,
    "redis_conf": lambda known: f"requirepass {known['redis_password']}",
    "redis_url": lambda known: f"redis://:{known['redis_password']}@redis:6379/0",
    "origin_secret": _password,
    "grafana_password": _password,
}


def make_secrets(folder: Path, mode: int = MODES[0]) -> list[str]:
    """Make the files that are missing; returns their names.

    Raises:
        StackError: the folder or a file cannot be written.
        UsageError: a file that is there cannot be used.
    """
    made = []
    known: dict[str, str] = {}
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        folder.chmod(FOLDER_MODE)
        for name, make in FILES.items():
            path = folder / name
            if not path.exists():
                _write(path, make(known), mode)
                made.append(name)
            known[name] = read_secret(path, "a secret of docker-compose.yml")
    except OSError as error:
        raise StackError(f"{folder} cannot hold the secrets ({error.strerror}): name another with --folder") from None
    return made


def _write(path: Path, text: str, mode: int) -> None:
    """All or nothing, and never readable by more than `mode` says."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(f"{text}\n")
    draft.chmod(mode)
    draft.rename(path)


def too_open(folder: Path) -> list[str]:
    """Files that others than owner and group may read, or that anybody but the owner may write."""
    return [name for name in FILES if stat.S_IMODE((folder / name).stat().st_mode) & 0o037]


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and make the files; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m almanac.production.secrets", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to make them (deploy/secrets)")
    parser.add_argument("--mode", choices=[f"{mode:04o}" for mode in MODES], default=f"{MODES[0]:04o}")
    given = parser.parse_args(arguments)
    try:
        made = make_secrets(given.folder, int(given.mode, 8))
        if loose := too_open(given.folder):
            raise UsageError(f"{given.folder}: too many may read {', '.join(loose)}: chmod {given.mode} them")
    except AlmanacError as error:
        print(f"secrets: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    print(f"{given.folder}: made {', '.join(made) or 'nothing, all are there'}")
    group = (given.folder / next(iter(FILES))).stat().st_gid
    try:
        name = grp.getgrgid(group).gr_name
    except KeyError:
        name = "without a name"
    print(f"for .env beside docker-compose.yml (containers read the files as group {name}):\nSECRETS_GID={group}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
