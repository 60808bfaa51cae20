"""The pipeline `shop` with two hundred simulated customers, and what they have just bought left out."""

from dataclasses import replace

from almanac.challenger import Challenger
from almanac.interactions import Simulated
from almanac.partitioning import Buckets
from almanac.pipeline import days
from pipelines.variants.shop_leaving_out import shop as _shop

_size = Simulated(entities=200, items=120, history=days(60), lines_per_entity=30)

shop = replace(
    _shop,
    partitions=Buckets(count=4),
    source=replace(_shop.source, simulated=_size),  # type: ignore[type-var]
    # So few customers teach a model little; what is shown is that it serves.
    training=replace(_shop.training, challenger=Challenger(schedule="30 4 * * 1", baseline_max=2.0, rows_min=10)),
)
