"""Peer of `batch`: Feast's historical features into pandas, LightGBM, a Redis key a prediction, `to_sql`.

Runs in its own environment; speaks JSON lines: the world first, then `{"do": "run"}`, with `cells` for
the first of them alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import lightgbm
import pandas as pd
import redis
import sqlalchemy
from answering import Request, answer, lap
from feast_world import open_store, postgres_url, service_of

SETS_AT_ONCE = 10_000
ROWS_AT_ONCE = 10_000


class Job:
    """One run after another over the same files, model and servers."""

    def __init__(self, world: dict[str, Any]) -> None:
        self.world = world
        self.store = open_store(world)
        self.service = service_of(self.store)
        self.columns = [column for columns in world["views"].values() for column in columns]
        self.models = {name: lightgbm.Booster(model_file=path) for name, path in world["models"].items()}
        self.redis = redis.Redis.from_url(world["redis"])
        self.engine = sqlalchemy.create_engine(postgres_url(world))

    def run(self, cells: int) -> dict[str, Any]:
        """Features, predictions, Redis, Postgres of the first cells; rows a second and each stage's seconds."""
        taken: dict[str, float] = {}
        began = start = time.perf_counter()
        as_of = datetime.fromisoformat(self.world["as_of"])
        entities = pd.DataFrame({"cell_id": range(cells), "event_timestamp": as_of})
        frame = self.store.get_historical_features(entity_df=entities, features=self.service).to_df()
        began = lap(taken, "features", began)
        inputs = frame[self.columns].astype("float32")
        found = pd.DataFrame({"cell_id": frame["cell_id"], "as_of": as_of})
        for name, model in self.models.items():
            found[name] = inputs[self.world["value"]] + model.predict(inputs, num_threads=1)
        began = lap(taken, "scoring", began)
        self.to_redis(found)
        began = lap(taken, "redis", began)
        found.to_sql("peer_predictions", self.engine, if_exists="replace", index=False, chunksize=ROWS_AT_ONCE)
        lap(taken, "postgres", began)
        means = {name: float(found[name].mean()) for name in self.models}
        return {"rate": len(found) / (time.perf_counter() - start), "stages": taken, "means": means}

    def to_redis(self, found: pd.DataFrame) -> None:
        """A key a prediction, as JSON, in pipelines of `SETS_AT_ONCE`."""
        names = list(self.models)
        pipe = self.redis.pipeline(transaction=False)
        rows = zip(found["cell_id"].tolist(), found[names].to_numpy().tolist(), strict=True)
        for count, (cell, values) in enumerate(rows, start=1):
            pipe.set(f"peer:prediction:{cell}", json.dumps(dict(zip(names, values, strict=True))))
            if count % SETS_AT_ONCE == 0:
                pipe.execute()
        pipe.execute()


def of(world: dict[str, Any]) -> Callable[[Request], Any]:
    """What answers requests about a world."""
    job = Job(world)
    return lambda asked: job.run(asked.get("cells", world["cells"]))


if __name__ == "__main__":
    answer(of)
