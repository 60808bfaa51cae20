"""Feast definitions of the pipeline `weather`: what is known of a grid cell, hour by hour.

The columns are computed by `features.grid`; Airflow's ingest step writes them
to Parquet, and events on the stream push the observation view alone.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, PushSource, ValueType
from feast.types import Float32

from features.grid import VIEWS
from features.view_files import file_of

PIPELINE = "weather"
# A row may be used for so long. Longer makes training slower (each row of the past is compared with
# every hour within it), shorter leaves the stream without features sooner when the batch side is down.
USABLE_FOR = timedelta(hours=6)


def _fields(view: str) -> list[Field]:
    return [Field(name=name, dtype=Float32) for name in VIEWS[view]]


cell = Entity(
    name="cell",
    join_keys=["cell_id"],
    value_type=ValueType.INT64,
    description="A cell of the grid, numbered row by row from the north-west corner.",
)

observation_push = PushSource(
    name="weather_observations",
    batch_source=file_of(PIPELINE, "cell_observation"),
    description="Observations from the Kafka topic weather.observations.",
)

cell_observation = FeatureView(
    name="cell_observation",
    entities=[cell],
    schema=_fields("cell_observation"),
    source=observation_push,
    ttl=USABLE_FOR,
    description="The latest observed value and the hour of day.",
)

cell_history = FeatureView(
    name="cell_history",
    entities=[cell],
    schema=_fields("cell_history"),
    source=file_of(PIPELINE, "cell_history"),
    ttl=USABLE_FOR,
    description="The cell's own values over the hours before.",
)

cell_neighbours = FeatureView(
    name="cell_neighbours",
    entities=[cell],
    schema=_fields("cell_neighbours"),
    source=file_of(PIPELINE, "cell_neighbours"),
    ttl=USABLE_FOR,
    description="What the cells around observed.",
)

cell_position = FeatureView(
    name="cell_position",
    entities=[cell],
    schema=_fields("cell_position"),
    source=file_of(PIPELINE, "cell_position"),
    ttl=timedelta(0),  # holds at all times
    description="Where the cell is.",
)

weather_v1 = FeatureService(
    name="weather_v1",
    features=[cell_observation, cell_history, cell_neighbours, cell_position],
    description="Inputs of the models named weather.",
)
