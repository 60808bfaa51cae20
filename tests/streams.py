"""A small stream for tests: a pipeline on 4 x 5 cells, its settings, and ways to look at topics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, TopicPartition

from almanac.clock import format_time, utc_now
from almanac.errors import Unavailable
from almanac.partitioning import Grid
from almanac.pipeline import Pipeline, Stream
from almanac.registry import Registry
from almanac.settings import Settings
from pipelines.weather import weather
from streaming.connection import consumed, open_reader
from streaming.publish import Outgoing
from streaming.records import Consumed
from streaming.sink import Hold
from tests.models import description

ROOT = Path(__file__).resolve().parent.parent
GRID = Grid(rows=4, cols=5, tile=2)
COLUMNS = ("t2m", "lag_1h", "latitude")
"""Input columns of the tests' models; the observation first."""
SMALL = Hold(seconds=0.2, records=100, bytes=1_000_000)
"""So that an archive sink writes at once."""
READ_SECONDS_MAX = 60
WAIT_SECONDS_MAX = 90
BEGUN = "answers signals"
"""What a test's child process prints once SIGTERM ends it in order."""

DECLARATION = """
from tests.streams import tiny_pipeline

tiny = tiny_pipeline({name!r})
"""


def tiny_pipeline(name: str) -> Pipeline:
    """`weather` on 20 cells, with topics of its own."""
    return replace(
        weather, name=name, partitions=GRID, model=f"{name}@champion", stream=Stream(topic=f"{name}.observations")
    )


def environment(settings: Settings, name: str, declared: str = DECLARATION) -> dict[str, str]:
    """What a process of this pipeline reads its settings from."""
    declaration = settings.state_dir / "declaration.py"
    declaration.write_text(declared.format(name=name))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ALMANAC_")}
    urls = {
        "ALMANAC_POSTGRES_URL": settings.postgres_url,
        "ALMANAC_REDIS_URL": settings.redis_url,
        "ALMANAC_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "ALMANAC_ORIGIN_SECRET": settings.origin_secret,
    }
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "ALMANAC_STATE_DIR": str(settings.state_dir),
        "ALMANAC_PIPELINES": str(declaration),
        **{key: value for key, value in urls.items() if value},
    }


def almanac(variables: dict[str, str], *words: str, given: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    done = subprocess.run(
        [sys.executable, "-m", "almanac.cli", *words], env=variables, input=given, capture_output=True, timeout=90
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


class FeaturesInMemory:
    """The same features for every cell: for streams whose test is not about them."""

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        self._entity = pipeline.entity

    def read(self, entities: Sequence[Any], *, at: datetime | None = None) -> pa.Table:
        """As `OnlineFeatures` does."""
        columns = {name: pa.array([1.0] * len(entities), pa.float32()) for name in COLUMNS}
        return pa.table({self._entity: pa.array(entities, pa.int64()), **columns})

    def lacking(self, entities: Sequence[Any], *, at: datetime) -> Mapping[Any, Sequence[str]]:
        """Nobody lacks anything."""
        return {}


def event(cell: int, value: float, observed_at: datetime | None = None) -> Outgoing:
    """An event of the tiny pipeline, a minute old unless told."""
    moment = observed_at or utc_now() - timedelta(minutes=1)
    body = {"cell_id": cell, "observed_at": format_time(moment), "t2m": value}
    return Outgoing(value=json.dumps(body).encode(), key=str(cell).encode())


def read_topic(settings: Settings, topic: str) -> list[Consumed]:
    """Everything that is committed in a topic, by partition and offset."""
    reader = open_reader(settings)
    try:
        left = set(reader.list_topics(topic, timeout=10).topics[topic].partitions)
        reader.assign([TopicPartition(topic, partition, 0) for partition in left])
        found: list[Consumed] = []
        give_up_at = time.monotonic() + READ_SECONDS_MAX
        while left:
            assert time.monotonic() < give_up_at, f"partitions {left} of {topic} have no end"
            for message in reader.consume(500, 0.2):
                if message.error() is not None and message.error().code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
                else:
                    found += consumed([message])
        return sorted(found, key=lambda record: (record.partition, record.offset))
    finally:
        reader.close()


def caught_up(settings: Settings, group: str, topic: str) -> bool:
    """Whether a consumer group has committed everything that is in a topic."""
    consumer = Consumer({"bootstrap.servers": settings.need("kafka_bootstrap"), "group.id": group})
    try:
        partitions = [
            TopicPartition(topic, p) for p in consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ]
        committed = {found.partition: found.offset for found in consumer.committed(partitions, timeout=10)}
        ends = {found.partition: consumer.get_watermark_offsets(found, timeout=10)[1] for found in partitions}
        return all(end == 0 or committed[partition] == end for partition, end in ends.items())
    finally:
        consumer.close()


def eventually(what: Callable[[], Any], told: Callable[[], str] = str) -> Any:
    """Ask until there is something to be had; then return it. A server that is away for the moment has nothing."""
    give_up_at = time.monotonic() + WAIT_SECONDS_MAX
    away = ""
    while True:
        try:
            if found := what():
                return found
        except Unavailable as error:
            away = f"; {error}"
        assert time.monotonic() < give_up_at, f"not within {WAIT_SECONDS_MAX} s: {told()}{away}"
        time.sleep(0.1)


def register_model(settings: Settings, pipeline: Pipeline, bias: float, *, columns: tuple[str, ...] = COLUMNS) -> str:
    """Register and alias a model that answers the observation, plus the hours ahead, plus `bias`. Returns its id."""
    outputs = pipeline.output_names
    registry = Registry(settings.models_dir)
    version = registry.register(
        pipeline.model_name,
        {"model.onnx": _graph(columns, {output: bias + hours_ahead(output) for output in outputs})},
        description(pipeline.features, columns, outputs),
        now=utc_now(),
    )
    registry.set_alias(pipeline.model_name, pipeline.model_alias, version.version)
    return version.id


def hours_ahead(output: str) -> float:
    """The hours in `t2m_6h`."""
    return float(output.removeprefix("t2m_").removesuffix("h"))


def _graph(columns: tuple[str, ...], biases: dict[str, float]) -> bytes:
    """An ONNX graph: the first column plus a number per output."""
    import onnx
    from onnx import TensorProto, helper

    nodes, constants = [], [helper.make_tensor("first", TensorProto.INT64, [], [0])]
    nodes.append(helper.make_node("Gather", ["features", "first"], ["observed"], axis=1))
    for output, bias in biases.items():
        constants.append(helper.make_tensor(f"bias_{output}", TensorProto.FLOAT, [], [bias]))
        nodes.append(helper.make_node("Add", ["observed", f"bias_{output}"], [output]))
    graph = helper.make_graph(
        nodes,
        "observed_plus",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", len(columns)])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows"]) for output in biases],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"almanac.inputs": json.dumps(list(columns))})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
