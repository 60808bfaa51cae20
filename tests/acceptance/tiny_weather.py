"""The pipeline `weather` on 99 cells with a small model: the whole thread in the time a test may take."""

from dataclasses import replace

from almanac.challenger import Challenger
from almanac.partitioning import Grid
from almanac.pipeline import Training, days
from pipelines.weather import weather as _weather

CHALLENGER = Challenger(baseline_max=2.0)
"""So small a model may be worse than a baseline on some days of the simulated atmosphere."""

weather = replace(
    _weather,
    partitions=Grid(rows=9, cols=11, tile=4, north=52.5, west=-1.25, step=0.25),
    shard_partitions=5,
    training=Training(window=days(10), holdout=days(2), rows_max=12_000, trees=30, leaves=15, challenger=CHALLENGER),
)
