"""The pipeline `weather` on 99 cells with a small model: the whole thread in the time a test may take."""

from dataclasses import replace

from almanac.partitioning import Grid
from almanac.pipeline import Training, days
from pipelines.weather import weather as _weather

weather = replace(
    _weather,
    partitions=Grid(rows=9, cols=11, tile=4, north=52.5, west=-1.25, step=0.25),
    shard_partitions=5,
    training=Training(window=days(10), holdout=days(2), rows_max=12_000, trees=30, leaves=15),
)
