"""Peer of `batch_shop`: a table of purchases, pandas, LightGBM, a Redis key a customer, `to_sql`.

Runs in its own environment; speaks JSON lines: the world first, then `{"do": "run", "entities": 1000}` for
the first of them. Their lines and the items' tables are read beforehand, and count for nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import redis
import sqlalchemy
from answering import Request, answer, lap
from feast_world import postgres_url

DAY = 86_400_000_000
SETS_AT_ONCE = ROWS_AT_ONCE = 10_000
BOUGHT, SEEDS, NEIGHBOURS, POPULAR = 100, 20, 20, 50
ANY = "*"
BY = ["entity", "item"]
TABLE = "peer_lists"


class Job:
    """One run after another over the same lines, items, model and servers."""

    def __init__(self, world: dict[str, Any]) -> None:
        self.world = world
        self.now, self.items_at = micros(world["as_of"]), micros(world["items_at"])
        self.model = lightgbm.Booster(model_file=world["model"])
        self.redis = redis.Redis.from_url(world["redis"])
        self.engine = sqlalchemy.create_engine(postgres_url(world))
        stats, together = (self.newest(world[name]) for name in ("stats", "together"))
        numbers = stats.drop(columns=["event_timestamp", "created_timestamp"], errors="ignore").set_index("item_id")
        self.stats = numbers[(numbers["available"] > 0) & np.isfinite(numbers).all(axis=1)]
        prices = numbers["price"].astype("float64")
        self.prices = prices[np.isfinite(prices) & (prices > 0)]  # of items that have left the range, too
        near = together.explode(["together_items", "together_weights"]).dropna(subset=["together_items"])
        near["rank"] = near.groupby("item_id").cumcount()
        near = near.rename(columns={"item_id": "seed", "together_items": "item", "together_weights": "weight"})
        near["weight"] = near["weight"].astype("float64")
        self.near = near.loc[(near["seed"] != ANY) & (near["rank"] < NEIGHBOURS), ["seed", "item", "weight"]]
        liked = near.loc[(near["seed"] == ANY) & (near["rank"] < POPULAR), ["item", "rank"]]
        self.liked = liked.rename(columns={"rank": "popular_place"})
        self.lines, self.held = pd.DataFrame(), 0

    def newest(self, folder: str) -> pd.DataFrame:
        """The newest row of each item."""
        found = pd.read_parquet(folder)
        found = found[found["event_timestamp"] <= pd.Timestamp(self.world["as_of"])]
        return found.sort_values("event_timestamp").groupby("item_id").tail(1)

    def read(self, entities: int) -> None:
        """Hold the lines of the first entities."""
        if self.held == entities:
            return
        self.held = entities
        keys = pd.read_parquet(self.world["lines"], columns=["entity"])["entity"].drop_duplicates()
        last = keys.sort_values().iloc[min(entities, len(keys)) - 1]
        columns = ["entity", "item", "quantity", "price", "at"]
        found = pd.read_parquet(self.world["lines"], columns=columns, filters=[("entity", "<=", last)])
        found["at"] = found["at"].astype("datetime64[us, UTC]").astype("int64")
        found = found[found["at"] <= self.now].reset_index(drop=True)
        # A list speaks as of its entity's newest purchase, or of the items, if these are newer.
        found["now"] = found.groupby("entity")["at"].transform("max").clip(lower=self.items_at)
        self.lines = found

    def run(self, entities: int) -> dict[str, Any]:
        """Lists of the first entities; entities a second and each stage's seconds."""
        self.read(entities)
        taken: dict[str, float] = {}
        began = start = time.perf_counter()
        windows = self.windows()
        began = lap(taken, "windows", began)
        pairs = self.candidates()
        began = lap(taken, "candidates", began)
        frame = pairs.merge(windows, left_on="entity", right_index=True).merge(
            self.stats, left_on="item", right_index=True
        )
        inputs = frame[self.world["inputs"]].astype("float32")
        began = lap(taken, "features", began)
        frame["score"] = self.model.predict(inputs, num_threads=1).astype("float32")
        began = lap(taken, "scoring", began)
        frame = frame.sort_values(["entity", "score", "item"], ascending=[True, False, True])
        lists = frame.groupby("entity").head(self.world["kept"])[["entity", "item", "score", "price"]].copy()
        lists["place"] = lists.groupby("entity").cumcount()
        began = lap(taken, "lists", began)
        self.to_redis(lists)
        began = lap(taken, "redis", began)
        lists.to_sql(TABLE, self.engine, if_exists="replace", index=False, chunksize=ROWS_AT_ONCE)
        lap(taken, "postgres", began)
        made = int(lists["entity"].nunique())
        return {"rate": made / (time.perf_counter() - start), "stages": taken, "entities": made}

    def windows(self) -> pd.DataFrame:
        """Columns of each entity."""
        lines = self.lines
        lines = lines.assign(
            units=np.rint(lines["quantity"]), spend=np.rint(lines["quantity"] * lines["price"] * 100),
            age=lines["now"] // DAY - lines["at"] // DAY,
        )  # fmt: skip
        by = lines.groupby("entity")["at"]
        first, last, now = by.min(), by.max(), lines.groupby("entity")["now"].first()
        found = pd.DataFrame(index=first.index)
        for days in (7, 30, 90):
            some = lines[lines["age"] < days].groupby("entity")
            found[f"orders_{days}d"] = some["at"].nunique()
            found[f"lines_{days}d"] = some.size()
            found[f"units_{days}d"] = some["units"].sum()
            found[f"spend_{days}d"] = some["spend"].sum() / 100
        found = found.fillna(0)
        found["days_since_last"] = (now - last) / DAY
        found["days_since_first"] = (now - first) / DAY
        found["orders_ever"] = by.nunique()
        found["items_known"] = lines.groupby("entity")["item"].nunique().clip(upper=BOUGHT)
        newest = lines[lines["at"] == lines["entity"].map(last)]
        found["basket_size"] = newest.groupby("entity").size()
        units, spend = found["units_90d"], found["spend_90d"] * 100
        mean = (spend / (100 * units.clip(lower=1))).where((units > 0) & (spend > 0), -1.0)
        return found.assign(price_mean=mean)

    def candidates(self) -> pd.DataFrame:
        """Pairs of entities and candidate items, with what is known of each pair."""
        own = (
            self.lines.groupby(BY).agg(max=("at", "max"), nunique=("at", "nunique"), now=("now", "first")).reset_index()
        )
        own = own.sort_values(["entity", "max", "item"], ascending=[True, False, True])
        own["own_place"] = own.groupby("entity").cumcount()
        own = own[own["own_place"] < BOUGHT]
        own["own_days"], own["own_count"] = (own["now"] - own["max"]).clip(lower=0) / DAY, own["nunique"]
        seeds = own.loc[own["own_place"] < SEEDS, ["entity", "item", "own_place"]]
        near = seeds.rename(columns={"item": "seed", "own_place": "near_place"}).merge(self.near, on="seed")
        near = near.groupby(BY).agg(
            near_weight=("weight", "sum"), near_count=("weight", "size"), near_place=("near_place", "min")
        )
        liked = self.lines[["entity"]].drop_duplicates().merge(self.liked, how="cross").set_index(BY)
        pairs = own.set_index(BY)[["own_place", "own_count", "own_days"]].join([near, liked], how="outer").reset_index()
        pairs = pairs[pairs["item"].isin(self.stats.index)]
        weight = pairs["near_weight"].fillna(0).astype("float32")
        prior = weight
        for place, most in (("own_place", 2.0), ("popular_place", 0.5)):
            more = np.float32(most) / (1 + pairs[place].astype("float32") / np.float32(20))
            prior = (prior + more.astype("float32")).where(pairs[place].notna(), prior)
        pairs["prior"] = prior
        pairs = pairs.sort_values(["entity", "prior", "item"], ascending=[True, False, True])
        pairs = pairs.groupby("entity").head(self.world["candidates"])
        places = [name for name in pairs.columns if name.endswith("_place")]
        absent = dict.fromkeys(pairs.columns.difference(BY), 0.0) | dict.fromkeys(places, -1.0)
        pairs = pairs.fillna(absent)
        mean = own.assign(price=own["item"].map(self.prices)).groupby("entity")["price"].mean()
        ratio = pairs["item"].map(self.prices) / pairs["entity"].map(mean)
        return pairs.assign(price_to_own=ratio.fillna(0)).drop(columns="prior")

    def to_redis(self, lists: pd.DataFrame) -> None:
        """A key an entity, as JSON, in pipelines of `SETS_AT_ONCE`."""
        pipe = self.redis.pipeline(transaction=False)
        for count, (entity, some) in enumerate(lists.groupby("entity"), start=1):
            pipe.set(f"peer:list:{entity}", json.dumps([some["item"].tolist(), some["score"].tolist()]))
            if count % SETS_AT_ONCE == 0:
                pipe.execute()
        pipe.execute()


def micros(moment: str) -> int:
    """A time as microseconds since 1970."""
    return (datetime.fromisoformat(moment) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def of(world: dict[str, Any]) -> Callable[[Request], Any]:
    """What answers requests about a world."""
    job = Job(world)
    return lambda asked: job.run(asked["entities"])


if __name__ == "__main__":
    answer(of)
