"""Ten items for every customer of a shop, from what customers bought."""

from datetime import UTC, datetime, timedelta

from almanac.challenger import Challenger
from almanac.interactions import Columns
from almanac.partitioning import Buckets
from almanac.pipeline import (
    Fresh,
    Freshness,
    Interactions,
    Lines,
    Output,
    Pipeline,
    Ranking,
    Stream,
    Training,
    days,
    hours,
)
from almanac.ranking_declared import ANY_ITEM

# A file of purchases, a line a row: what its columns are called, and which of its lines are no items.
_purchases = Interactions(
    since=datetime(2010, 1, 1, tzinfo=UTC),
    columns=Columns(
        entity="CustomerID", item="Description", quantity="Quantity", price="UnitPrice", time="InvoiceDate"
    ),
    time_zone="Europe/London",
    not_items=("POSTAGE", "DOTCOM POSTAGE", "CARRIAGE", "MANUAL", "DISCOUNT", "SAMPLES", "BANK CHARGES"),
    history="customer_history",
)
_lines = Lines(item="item_id", values={"quantity": (-100_000, 100_000), "price": (0, 100_000)})

shop = Pipeline(
    name="shop",
    entity="customer_id",
    partitions=Buckets(count=64),
    changed_only=True,
    outputs=(Output(name="score"),),
    features="shop_v1",
    model="shop@champion",
    schedule="0 3 * * *",
    freshness=Freshness(fresh_for=hours(36), usable_for=days(7)),
    source=_purchases,
    ranking=Ranking(item="item_id", features="shop_items_v1", available="available", attributes=("price",)),
    training=Training(
        objective="lambdarank",
        window=days(150),
        holdout=days(30),
        rows_max=300_000,
        trees=150,
        learning_rate=0.06,
        challenger=Challenger(schedule="30 4 * * 1"),
    ),
    stream=Stream(topic="shop.purchases", lines=_lines),
    fresh=Fresh(deadline=timedelta(milliseconds=500)),
    default=ANY_ITEM,
    description="Items that a customer may want next, ranked.",
    tags=("shop", "customers"),
)
