"""The commands, environments and health checks of docker-compose.yml, run on real servers of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
import pytest

from almanac.production import secrets
from tests.compose import ROOT, program_of, seconds, services
from tests.lookups import unused_port

HEALTHY_SECONDS_MAX = 240
ONCE_SECONDS_MAX = 120
POLL_SECONDS = 0.3
LASTING = ("lookup-0", "reconciler", "monitor", "stream-0")
ROLES = {"postgres_url": "composed", "airflow_database_url": "composed_airflow"}


@dataclass
class Machine:
    """What stands in for the containers' network and volumes: this machine's ports and folders."""

    folder: Path
    kafka: str
    ports: dict[str, dict[str, int]] = field(default_factory=dict)

    def environment(self, name: str) -> dict[str, str]:
        """A service's environment, with paths, addresses and ports of this machine, and nothing else."""
        ports = self.ports.setdefault(name, {"8000": unused_port(), "9100": unused_port()})
        found = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(self.folder)}
        for variable, value in services()[name].get("environment", {}).items():
            for there, here in {
                "/run/secrets": str(self.folder / "secrets"),
                "/state": str(self.folder / "state"),
                "/airflow/": f"{self.folder}/airflow/",
                "kafka:9092": self.kafka,
            }.items():
                value = value.replace(there, here)
            if variable in ("ALMANAC_LOOKUP_PORT", "ALMANAC_METRICS_PORT"):
                value = str(ports[value])
            found[variable] = value
        return found

    def words(self, words: list[str]) -> list[str]:
        """A command or a health check as it is run here."""
        words = words[1:] if words[0] == "CMD" else words
        assert words[0] == "python"
        return [sys.executable, *words[1:]]

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start a service."""
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                self.words(services()[name]["command"]), cwd=self.folder, env=self.environment(name),
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def get(self, name: str, path: str) -> httpx.Response:
        """Ask a service at the port that Prometheus would."""
        port = self.ports[name]["8000" if program_of(name) == "lookup" else "9100"]
        return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=10)

    def ready(self, name: str) -> bool:
        """Whether there is any use in asking it by its own check, which starts a process."""
        try:
            return self.get(name, "/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def healthy(self, name: str) -> subprocess.CompletedProcess[str]:
        """Ask a service by its own check."""
        return subprocess.run(
            self.words(services()[name]["healthcheck"]["test"]), cwd=self.folder, env=self.environment(name),
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip


@pytest.fixture
def machine(
    server_dir: Path, postgres_url: str, redis_url: str, kafka_bootstrap: str, tmp_path: Path
) -> Iterator[Machine]:
    """Secret files as the command makes them, their addresses changed to the real servers'."""
    folder = tmp_path / "secrets"
    secrets.make_secrets(folder)
    host = f"127.0.0.1:{urlsplit(postgres_url).port}"
    password = json.loads((server_dir / "postgres-server" / "secrets.json").read_text())["postgres"]
    admin = f"postgresql://postgres:{password}@{host}/postgres"
    (folder / "postgres_admin_url").write_text(f"{admin}\n")
    (folder / "redis_url").write_text(f"{redis_url}\n")
    for name, role in ROLES.items():
        parts = urlsplit((folder / name).read_text().strip())
        own = parts._replace(netloc=f"{role}:{parts.password}@{host}", path=f"/{role}")
        (folder / name).write_text(f"{urlunsplit(own)}\n")
    (tmp_path / "state").mkdir()
    try:
        yield Machine(tmp_path, kafka_bootstrap)
    finally:
        with psycopg.connect(admin, autocommit=True) as connection:
            for role in ROLES.values():
                connection.execute(f"DROP DATABASE IF EXISTS {role} WITH (FORCE)")
                connection.execute(f"DROP ROLE IF EXISTS {role}")


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_services_start_say_that_they_are_healthy_show_metrics_and_stop(machine: Machine) -> None:
    for name in ("prepare", "almanac-schema"):
        assert machine.start(name).wait(ONCE_SECONDS_MAX) == 0, machine.log(name)
    assert (machine.folder / "airflow" / "home" / "passwords.json").is_file()

    running = {name: machine.start(name) for name in LASTING}
    try:
        give_up_at = time.monotonic() + HEALTHY_SECONDS_MAX
        for name, process in running.items():
            while not machine.ready(name):
                assert process.poll() is None, machine.log(name)
                assert time.monotonic() < give_up_at, machine.log(name)
                time.sleep(POLL_SECONDS)
            found = machine.healthy(name)
            assert (found.returncode, found.stdout) == (0, f"{program_of(name)} is healthy\n")
            assert "# TYPE almanac_" in machine.get(name, "/metrics").text, name
    finally:
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        codes = {}
        for name, process in running.items():
            try:
                codes[name] = process.wait(seconds(services()[name]["stop_grace_period"]))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    assert codes == dict.fromkeys(LASTING, 0), {name: machine.log(name) for name in LASTING}
    for name in LASTING:
        assert machine.healthy(name).returncode == 1
        assert "Traceback" not in machine.log(name), machine.log(name)
        for secret in (machine.folder / "secrets").iterdir():
            assert secret.read_text().strip() not in machine.log(name), f"{name} logs {secret.name}"


def test_a_service_whose_secret_is_unusable_says_so_in_one_line(machine: Machine) -> None:
    (machine.folder / "secrets" / "redis_url").write_text("\n")
    process = machine.start("lookup-0")
    assert process.wait(ONCE_SECONDS_MAX) == 2
    lines = machine.log("lookup-0").splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"lookup: {machine.folder}/secrets/redis_url (ALMANAC_REDIS_URL_FILE) is empty")
