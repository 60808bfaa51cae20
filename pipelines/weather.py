"""Air temperature 1, 6, 12 and 24 hours ahead for every cell of a grid over Britain."""

from almanac.challenger import Challenger
from almanac.partitioning import Grid
from almanac.pipeline import (
    Fresh,
    Freshness,
    Gate,
    GridObservations,
    Pipeline,
    Stream,
    Training,
    horizons,
    hours,
    minutes,
)

weather = Pipeline(
    name="weather",
    entity="cell_id",
    partitions=Grid(rows=33, cols=49, tile=8, north=58.0, west=-10.0, step=0.25),
    outputs=horizons("t2m", hours=(1, 6, 12, 24), unit="K"),
    features="weather_v1",
    model="weather@champion",
    schedule="0 * * * *",
    freshness=Freshness(fresh_for=minutes(90), usable_for=hours(24)),
    source=GridObservations(variable="t2m", unit="K", valid_range=(180.0, 340.0)),
    stream=Stream(topic="weather.observations"),
    fresh=Fresh(),
    training=Training(challenger=Challenger()),
    gates=(
        Gate(on="features", expectation="expect_column_values_to_not_be_null", kwargs={"column": "t2m"}),
        Gate(
            on="features",
            expectation="expect_column_values_to_be_between",
            kwargs={"column": "t2m", "min_value": 180, "max_value": 340},
        ),
        *(
            Gate(
                on="predictions",
                expectation="expect_column_values_to_be_between",
                kwargs={"column": f"t2m_{h}h", "min_value": 180, "max_value": 340},
            )
            for h in (1, 6, 12, 24)
        ),
    ),
    description="Air temperature at 2 m, forecast for every cell of a 0.25 degree grid over Britain and Ireland.",
    tags=("weather", "grid"),
)
