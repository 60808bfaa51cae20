"""The production form's own programs: secret files, databases and roles, questions about health."""

from __future__ import annotations

import base64
import json
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy.engine import make_url

from almanac.errors import StackError, Unavailable, UsageError
from almanac.production import health, prepare, secrets
from almanac.settings import load_settings

# Secret files


def test_secrets_are_made_once_and_fit_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "secrets"
    assert secrets.main(["--folder", str(folder)]) == 0
    found = {name: (folder / name).read_text().strip() for name in secrets.FILES}
    assert sorted(path.name for path in folder.iterdir()) == sorted(secrets.FILES)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in found} == {0o640}
    assert len(set(found.values())) == len(found)
    printed = capsys.readouterr().out
    assert f"SECRETS_GID={folder.stat().st_gid}" in printed
    assert not [name for name, value in found.items() if value in printed]

    assert urlsplit(found["postgres_admin_url"]).password == found["postgres_password"]
    assert urlsplit(found["redis_url"]).password == found["redis_password"]
    assert found["redis_conf"] == f"requirepass {found['redis_password']}"
    assert len(base64.urlsafe_b64decode(found["airflow_fernet_key"])) == 32
    passwords = {make_url(found[name]).password for name in ("postgres_url", "airflow_database_url")}
    assert len(passwords | {found["postgres_password"]}) == 3

    (folder / "grafana_password").unlink()
    assert secrets.make_secrets(folder) == ["grafana_password"]
    assert {name: (folder / name).read_text().strip() for name in found if name != "grafana_password"} == {
        name: value for name, value in found.items() if name != "grafana_password"
    }


def test_secrets_for_their_owner_alone(tmp_path: Path) -> None:
    assert secrets.main(["--folder", str(tmp_path / "s"), "--mode", "0600"]) == 0
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "s").iterdir()} == {0o600}


def test_a_secret_that_everybody_may_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secrets.make_secrets(tmp_path / "s")
    (tmp_path / "s" / "redis_url").chmod(0o644)
    assert secrets.main(["--folder", str(tmp_path / "s")]) == UsageError.exit_code
    assert "too many may read redis_url: chmod 0640" in capsys.readouterr().err


def test_an_emptied_secret_is_named_and_not_replaced(tmp_path: Path) -> None:
    secrets.make_secrets(tmp_path / "s")
    (tmp_path / "s" / "postgres_password").write_text("\n")
    with pytest.raises(UsageError, match=r"postgres_password .* is empty"):
        secrets.make_secrets(tmp_path / "s")
    assert (tmp_path / "s" / "postgres_password").read_text() == "\n"


def test_secrets_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StackError, match="cannot hold the secrets"):
        secrets.make_secrets(tmp_path / "file")


# Databases


@contextmanager
def made_database(admin: str, name: str) -> Iterator[None]:
    """Whatever the block makes of this name is gone after it."""
    try:
        yield
    finally:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'DROP ROLE IF EXISTS "{name}"')


def superuser(server_dir: Path, url: str) -> str:
    """The superuser's URL of the session's Postgres."""
    password = json.loads((server_dir / "postgres-server" / "secrets.json").read_text())["postgres"]
    return f"postgresql://postgres:{password}@127.0.0.1:{urlsplit(url).port}/postgres"


def test_databases_and_roles_are_made_and_kept_apart(
    server_dir: Path, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, port = superuser(server_dir, postgres_url), urlsplit(postgres_url).port
    files = {
        prepare.ADMIN_VARIABLE: admin,
        "ALMANAC_POSTGRES_URL_FILE": f"postgresql://prod_a:one%2Ftwo@127.0.0.1:{port}/prod_a",
        prepare.AIRFLOW_VARIABLE: f"postgresql+psycopg2://prod_b:three@127.0.0.1:{port}/prod_b",
        "ALMANAC_AIRFLOW_PASSWORD_FILE": "the password",
    }
    for variable, value in files.items():
        (tmp_path / variable).write_text(f"{value}\n")
        monkeypatch.setenv(variable, str(tmp_path / variable))
    for variable in ("ALMANAC_POSTGRES_URL", "ALMANAC_AIRFLOW_PASSWORD"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "home"))
    with made_database(admin, "prod_a"), made_database(admin, "prod_b"):
        assert prepare.main() == 0
        assert json.loads((tmp_path / "home" / "passwords.json").read_text()) == {"admin": "the password"}
        own = f"postgresql://prod_a:one%2Ftwo@127.0.0.1:{port}/prod_a"
        with psycopg.connect(own, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (word text)")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("CREATE ROLE another")
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(f"postgresql://prod_a:one%2Ftwo@127.0.0.1:{port}/prod_b")

        for other in ("postgres", "template1"):
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(f"postgresql://prod_a:one%2Ftwo@127.0.0.1:{port}/{other}")

        # Again, with a new password: the data stays and only the new password opens.
        (tmp_path / "ALMANAC_POSTGRES_URL_FILE").write_text(own.replace("one%2Ftwo", "changed"))
        assert prepare.main() == 0
        with psycopg.connect(own.replace("one%2Ftwo", "changed")) as connection:
            connection.execute("SELECT * FROM kept")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(own)


def test_what_cannot_be_prepared_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Unavailable, match="databases could not be made"):
        prepare.make_databases("postgresql://postgres:secret@127.0.0.1:1/postgres", ["postgresql://a:b@h/c"])
    monkeypatch.setenv("ALMANAC_AIRFLOW_PASSWORD", "word")
    monkeypatch.delenv(prepare.ADMIN_VARIABLE, raising=False)
    assert prepare.main() == UsageError.exit_code
    assert capsys.readouterr().err == (
        f"prepare: {prepare.ADMIN_VARIABLE} is not set: give it the path of the secret's file\n"
    )


# Health


@contextmanager
def answering(status: int, body: bytes) -> Iterator[int]:
    """A server that answers /readyz; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("program", list(health.PORTS))
def test_a_program_says_itself_whether_it_is_healthy(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variable = f"ALMANAC_{health.PORTS[program].upper()}"
    with answering(200, b"ready\n") as port:
        monkeypatch.setenv(variable, str(port))
        assert health.main([program]) == 0
    assert health.main([program]) == 1  # nobody listens any more
    with answering(503, b"Redis does not answer\n") as port:
        monkeypatch.setenv(variable, str(port))
        assert health.main([program]) == 1
    monkeypatch.delenv(variable)
    assert health.main([program]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{program} is healthy"
    assert "does not answer" in lines[1]
    assert lines[2] == f"{program}: /readyz answered 503: Redis does not answer"
    assert f"set {variable}" in lines[3]


def test_airflows_programs_are_asked_for_at_its_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALMANAC_AIRFLOW_URL", "http://127.0.0.1:1")
    reason = health.why_not("airflow-scheduler", load_settings())
    assert reason is not None
    assert reason.startswith("the API server does not answer")
