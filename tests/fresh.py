"""Online features and a model for tests of fresh computation: a plan, rows in its layout, a tiny graph; no Feast."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import redis
from onnx import TensorProto, helper, numpy_helper

from almanac.clock import micros_of
from almanac.pipeline import Pipeline
from almanac.registry import ModelVersion, Registry
from almanac.scoring import COLUMNS_KEY
from features.online_reading import LAYOUT, PLAN_VERSION, Plan, Reader, View, encode_plan, plan_key
from features.packed.codec import Cells, Column, Layout, as_bytes, records
from tests.models import description

COLUMNS = ("t2m", "lag_1h", "latitude")
TTL_SECONDS = 6 * 3600.0
_MOMENT = datetime(2026, 3, 1, tzinfo=UTC)


def plan_for(pipeline: Pipeline, key_type: str = "int64") -> Plan:
    """Three views: what events push, what batch brings, and what holds at all times."""
    return Plan(
        version=PLAN_VERSION,
        layout=LAYOUT,
        service=pipeline.features,
        project="tests",
        join_key=pipeline.entity,
        key_type=key_type,  # type: ignore[arg-type]
        views=(
            _view("seen", "t2m", ttl_seconds=TTL_SECONDS, observed=True),
            _view("history", "lag_1h", ttl_seconds=TTL_SECONDS),
            _view("position", "latitude"),
        ),
    )


def _view(name: str, feature: str, **more: Any) -> View:
    return View(name=name, packed=(Column(feature, "FLOAT"),), features=(feature,), columns=(feature,), **more)


def put_plan(url: str, plan: Plan) -> None:
    """Write a plan to Redis."""
    with redis.Redis.from_url(url) as client:
        client.set(plan_key(plan.service), encode_plan(plan))


def put_features(
    url: str, plan: Plan, entity: int | str, at: datetime, *, history_at: datetime | None = None, **values: float | None
) -> None:
    """Write an entity's rows; a value of None is a null."""
    given = {"t2m": 280.0, "lag_1h": 2.0, "latitude": 50.0, **values}
    times = {"seen": at, "history": history_at or at, "position": _MOMENT}
    reader = Reader(plan)
    rows = [packed(layout, times[layout.view], given[layout.columns[0].name]) for layout in reader.layouts]
    with redis.Redis.from_url(url) as client:
        client.mset(dict(zip(reader.keys([entity]), rows, strict=True)))


def packed(layout: Layout, when: datetime, number: float | None) -> bytes:
    """The value of a view of one feature, which is a float."""
    cells = Cells(np.array([number or 0.0], dtype=np.float32), np.array([number is not None]))
    return as_bytes(records(layout, np.array([micros_of(when)]), {layout.columns[0].name: cells}, {}))[0]


def register_model(
    root: Path,
    pipeline: Pipeline,
    weights: tuple[float, ...] = (1.0, 0.5, 0.0),
    columns: tuple[str, ...] = COLUMNS,
) -> ModelVersion:
    """A model whose every output is the weighted sum of some columns, under the pipeline's alias."""
    registry = Registry(root)
    files = {"model.onnx": graph(pipeline.output_names, weights, columns)}
    version = registry.register(
        pipeline.model_name, files, description(pipeline.features, columns, pipeline.output_names), now=_MOMENT
    )
    registry.set_alias(pipeline.model_name, pipeline.model_alias, version.version)
    return version


def graph(outputs: tuple[str, ...], weights: tuple[float, ...], columns: tuple[str, ...] = COLUMNS) -> bytes:
    """The ONNX graph of such a model."""
    nodes = []
    tensors = [
        numpy_helper.from_array(np.array([-1], dtype=np.int64), "flat"),
        numpy_helper.from_array(np.array(weights, dtype=np.float32).reshape(-1, 1), "weights"),
    ]
    for output in outputs:
        nodes.append(helper.make_node("MatMul", ["features", "weights"], [f"{output}_2d"]))
        nodes.append(helper.make_node("Reshape", [f"{output}_2d", "flat"], [output]))
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, len(weights)])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None]) for output in outputs],
            tensors,
        ),
        opset_imports=[helper.make_opsetid("", 15)],
        ir_version=8,
    )
    helper.set_model_props(made, {COLUMNS_KEY: msgspec.json.encode(columns).decode()})
    return made.SerializeToString()
