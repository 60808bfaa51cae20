"""The servers' configuration in docker-compose.yml, read by the real servers."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest
import redis as redis_client

from almanac.production import secrets
from almanac.settings import settings
from almanac.stack import kafka, postgres, redis
from almanac.stack.kafka_jars import class_path
from tests.compose import ROOT, services
from tests.lookups import unused_port

SERVER_SECONDS_MAX = 60
POLL_SECONDS = 0.05


def test_redis_takes_its_configuration_and_asks_for_the_password(tmp_path: Path) -> None:
    folder, port = tmp_path / "secrets", unused_port()
    secrets.make_secrets(folder)
    (tmp_path / "data").mkdir()
    text = (ROOT / "deploy" / "redis" / "redis.conf").read_text()
    text = text.replace("/run/secrets", str(folder)).replace("dir /data", f"dir {tmp_path}/data")
    text = text.replace("port 6379", f"port {port}")
    (tmp_path / "redis.conf").write_text(text)
    process = subprocess.Popen([redis.binary(), tmp_path / "redis.conf"], stdout=subprocess.PIPE, text=True)
    password = (folder / "redis_password").read_text().strip()
    try:
        give_up_at = time.monotonic() + SERVER_SECONDS_MAX
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        while (reason := redis.why_not(url)) is not None:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < give_up_at, reason
            time.sleep(POLL_SECONDS)
        with redis_client.Redis.from_url(url) as client:
            assert client.config_get("maxmemory") == {"maxmemory": str(768 * 1024 * 1024)}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("appendonly") == {"appendonly": "yes"}
        stranger = redis_client.Redis.from_url(f"redis://127.0.0.1:{port}/0")
        with stranger, pytest.raises(redis_client.AuthenticationError):
            stranger.ping()
        kind, check = services()["redis"]["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        check = check.replace("/run/secrets", str(folder)).replace("redis-cli", f"redis-cli -p {port}")
        path = os.pathsep.join((str(redis.binary().parent), os.environ["PATH"]))
        assert subprocess.run(["sh", "-c", check], env={"PATH": path}, check=False).returncode == 0
        (folder / "redis_password").write_text("another\n")
        assert subprocess.run(["sh", "-c", check], env={"PATH": path}, check=False).returncode == 1
    finally:
        process.terminate()
        process.communicate(timeout=SERVER_SECONDS_MAX)


def test_postgres_takes_its_options(server_dir: Path, postgres_url: str) -> None:
    options = services()["postgres"]["command"]
    assert options[0] == "postgres"
    data = server_dir / "postgres-server" / "postgres" / "data"
    for name, expected in {
        "max_connections": "200",
        "shared_buffers": "32768",
        "jit": "off",
        "TimeZone": "UTC",
    }.items():
        words = (str(postgres.binaries() / "postgres"), "-D", str(data), *options[1:], "-C", name)
        done = subprocess.run(
            postgres.as_unprivileged(words, (data.parent, postgres.binaries())),
            capture_output=True, text=True, timeout=SERVER_SECONDS_MAX, cwd="/", check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr
    health = services()["postgres"]["healthcheck"]["test"]
    assert (postgres.binaries() / health[1]).is_file()
    user = postgres_url.split("//")[1].split(":")[0]
    words = [f"--username={user}" if word.startswith("--username") else word for word in health[2:]]
    words = [word for word in words if not word.startswith("--dbname")]
    done = subprocess.run(
        [postgres.binaries() / health[1], *words, postgres_url], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_kafka_takes_its_variables(tmp_path: Path) -> None:
    """As Apache's image does: each variable becomes a property; formatting the storage reads and checks them all."""
    environment = services()["kafka"]["environment"]
    lines = [
        f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={value}"
        for name, value in environment.items()
        if name.startswith("KAFKA_") and name != "KAFKA_HEAP_OPTS"
    ]
    text = "\n".join(lines).replace("/var/lib/kafka/data", str(tmp_path / "data"))
    (tmp_path / "server.properties").write_text(text)
    command = [str(kafka.java()), *shlex.split(environment["KAFKA_HEAP_OPTS"]), "-cp", class_path(settings().cache_dir)]
    words = [
        "kafka.tools.StorageTool",
        "format",
        "-t",
        environment["CLUSTER_ID"],
        "-c",
        f"{tmp_path}/server.properties",
    ]
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=SERVER_SECONDS_MAX, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"cluster.id={environment['CLUSTER_ID']}" in (tmp_path / "data" / "meta.properties").read_text()
