"""Peer of `lookup`: the same predictions as Feast features, in the same Redis, behind `feast serve`.

Runs in its own environment. Answers the world with a JSON line once everything
is in the online store, then serves until SIGTERM. Feast's command restarts its
worker every 1,000 requests; that is switched off here, in its favour.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float32
from feast_world import configuration

SERVICE = "predictions"


def prepared(world: dict[str, Any]) -> FeatureStore:
    """A store that holds a prediction of every cell, written by Feast itself."""
    folder = Path(os.getcwd())
    config = {**configuration(world, folder), "project": "peer_server", "registry": str(folder / "server-registry.db")}
    store = FeatureStore(config=RepoConfig(**config, repo_path=folder))
    as_of, outputs = datetime.fromisoformat(world["as_of"]), list(world["models"])
    values = np.random.default_rng(1).normal(283.0, 5.0, (world["cells"], len(outputs))).astype(np.float32)
    frame = pd.DataFrame({"cell_id": np.arange(world["cells"]), "event_timestamp": as_of})
    for index, output in enumerate(outputs):
        frame[output] = values[:, index]
    path = folder / "peer-predictions.parquet"
    frame.head(1).to_parquet(path)
    cell = Entity(name="cell", join_keys=["cell_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="predictions", entities=[cell], schema=[Field(name=output, dtype=Float32) for output in outputs],
        source=FileSource(name="predictions_file", path=str(path), timestamp_field="event_timestamp"),
        ttl=timedelta(days=1),
    )  # fmt: skip
    store.apply([cell, view, FeatureService(name=SERVICE, features=[view])])
    store.write_to_online_store("predictions", frame)
    return store


def main() -> None:
    """Prepare, say so, serve."""
    world = json.loads(sys.stdin.readline())
    store = prepared(world)
    print(json.dumps({"ready": True}), flush=True)
    store.serve(host="127.0.0.1", port=world["port"], workers=1, max_requests=0, max_requests_jitter=0)


if __name__ == "__main__":
    main()
