"""Feast definitions of the pipeline `shop`: what is known of a customer, and of an item.

The columns are computed by `features.interactions.history`; Airflow's ingest step writes
them to Parquet, and purchases on the stream push the customer's history alone.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, PushSource, ValueType
from feast.types import Array, FeastType, Float32, Int64, String

from features.interactions.history import HISTORY, STATS, TOGETHER
from features.view_files import file_of

PIPELINE = "shop"
TYPES: dict[str, FeastType] = {
    "int64": Int64,
    "float32": Float32,
    "int64s": Array(Int64),
    "float32s": Array(Float32),
    "strings": Array(String),
}


def _fields(columns: dict[str, str]) -> list[Field]:
    return [Field(name=name, dtype=TYPES[kind]) for name, kind in columns.items()]


customer = Entity(
    name="customer", join_keys=["customer_id"], value_type=ValueType.STRING, description="Who buys in the shop."
)

item = Entity(
    name="item",
    join_keys=["item_id"],
    value_type=ValueType.STRING,
    description="What the shop sells, by its normalised description; '*' stands for any item.",
)

purchase_push = PushSource(
    name="shop_purchases",
    batch_source=file_of(PIPELINE, "customer_history"),
    description="Purchases from the Kafka topic shop.purchases, folded into their customer's history.",
)

customer_history = FeatureView(
    name="customer_history",
    entities=[customer],
    schema=_fields(HISTORY),
    source=purchase_push,
    ttl=timedelta(0),  # a customer who bought long ago is a customer still
    description="What a customer bought, and how much on which day.",
)

item_stats = FeatureView(
    name="item_stats",
    entities=[item],
    schema=_fields(STATS),
    source=file_of(PIPELINE, "item_stats"),
    ttl=timedelta(days=7),
    description="How an item sells.",
)

item_together = FeatureView(
    name="item_together",
    entities=[item],
    schema=_fields(TOGETHER),
    source=file_of(PIPELINE, "item_together"),
    ttl=timedelta(days=10),  # said anew once a week, and what is popular every night
    description="What is bought together with an item; of '*': what is popular.",
)

shop_v1 = FeatureService(
    name="shop_v1", features=[customer_history], description="What the models named shop know of a customer."
)

shop_items_v1 = FeatureService(
    name="shop_items_v1",
    features=[item_stats, item_together],
    description="What the models named shop know of an item.",
)
