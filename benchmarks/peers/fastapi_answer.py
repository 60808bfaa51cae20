"""Peer of `answer`: a plain FastAPI service; Feast's online store, pandas, LightGBM.

Runs in its own environment. Answers the world with a JSON line once its
features are online, then serves until SIGTERM: `GET /predictions/{cell_id}`.
"""

from __future__ import annotations

import glob
import json
import sys
from typing import Any

import lightgbm
import pandas as pd
import uvicorn
from fastapi import FastAPI
from feast_world import open_store, service_of


def application(world: dict[str, Any]) -> FastAPI:
    """The service, its features written to Redis by Feast."""
    store = open_store(world)
    for view in world["views"]:
        frame = pd.concat(pd.read_parquet(path) for path in glob.glob(f"{world['files'][view]}/*.parquet"))
        newest = frame[frame["event_timestamp"] == frame["event_timestamp"].max()]
        store.write_to_online_store(view, newest)
    service = service_of(store)
    columns = [column for columns in world["views"].values() for column in columns]
    models = {name: lightgbm.Booster(model_file=path) for name, path in world["models"].items()}
    app = FastAPI()

    @app.get("/predictions/{cell_id}")
    def predict(cell_id: int) -> dict[str, Any]:
        found = store.get_online_features(features=service, entity_rows=[{"cell_id": cell_id}]).to_df()
        inputs = found[columns].astype("float32")
        value = float(inputs[world["value"]].iloc[0])
        predictions = {name: value + float(model.predict(inputs, num_threads=1)[0]) for name, model in models.items()}
        return {"cell_id": cell_id, "predictions": predictions}

    return app


def main() -> None:
    """Prepare, say so, serve."""
    world = json.loads(sys.stdin.readline())
    app = application(world)
    print(json.dumps({"ready": True}), flush=True)
    uvicorn.run(app, host="127.0.0.1", port=world["port"], log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
