"""Peer of `stream`: Quix Streams exactly-once; features packed in Redis, one GET an event; LightGBM.

Runs in its own environment; speaks JSON lines: the world first, then `{"count": events}`.
"""

from __future__ import annotations

import glob
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import redis
from answering import Request, answer
from quixstreams import Application

logging.disable(logging.INFO)


def put_features(world: dict[str, Any], client: redis.Redis) -> None:
    """Every cell's features of the newest hour, packed as float32, under one key a cell."""
    parts = []
    for view, columns in world["views"].items():
        frame = pd.concat(pd.read_parquet(path) for path in glob.glob(f"{world['files'][view]}/*.parquet"))
        newest = frame[frame["event_timestamp"] == frame["event_timestamp"].max()].sort_values("cell_id")
        parts.append(newest[columns].to_numpy(dtype=np.float32))
    table = np.hstack(parts)
    pipe = client.pipeline(transaction=False)
    for cell, row in enumerate(table):
        pipe.set(f"peer:features:{cell}", row.tobytes())
    pipe.execute()


class Stream:
    """One run after another; each goes on where the last one committed."""

    def __init__(self, world: dict[str, Any]) -> None:
        self.world = world
        self.redis = redis.Redis.from_url(world["redis"])
        put_features(world, self.redis)
        self.models = {name: lightgbm.Booster(model_file=path) for name, path in world["models"].items()}
        self.seen = 0
        self.first = self.last = 0.0

    def predict(self, event: dict[str, Any]) -> dict[str, Any]:
        """An event's predictions."""
        packed = self.redis.get(f"peer:features:{event['cell_id']}")
        row = np.frombuffer(packed, dtype=np.float32).copy()
        row[:3] = (event["value"], event["hour_sin"], event["hour_cos"])
        inputs = row[None, :]
        values = {
            name: event["value"] + float(model.predict(inputs, num_threads=1)[0]) for name, model in self.models.items()
        }
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.seen += 1
        return {"entity": event["cell_id"], "as_of": event["observed_at"], "values": values}

    def run(self, count: int) -> dict[str, Any]:
        """Handle so many events; events a second from the first to the last."""
        self.seen, self.first = 0, 0.0
        app = Application(
            broker_address=self.world["kafka"], consumer_group="peer", auto_offset_reset="earliest",
            processing_guarantee="exactly-once", commit_every=self.world["commit_every"], commit_interval=0.2,
            loglevel=None, state_dir=os.path.join(os.getcwd(), "peer-state"),
        )  # fmt: skip
        events = app.dataframe(app.topic(self.world["topic"], value_deserializer="json", key_deserializer="bytes"))
        events = events.apply(self.predict)
        events.to_topic(app.topic("peer.predictions", value_serializer="json", key_serializer="bytes"))
        app.run(count=count, collect=False)
        return {"rate": (self.seen - 1) / (self.last - self.first), "events": self.seen}


def of(world: dict[str, Any]) -> Callable[[Request], Any]:
    """What answers requests about a world."""
    stream = Stream(world)
    return lambda asked: stream.run(asked["count"])


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    answer(of, answers)
