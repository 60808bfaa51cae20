"""Feast definitions of the reference pipeline: 30 columns of a simulated grid, in four views."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Float32

from benchmarks.reference_columns import PUSHED_VIEW, STATIC_VIEW, VIEWS
from features.layout import CREATED_TIMESTAMP, EVENT_TIMESTAMP, source_path

PIPELINE = "reference"
USABLE_FOR = timedelta(hours=12)


def _file(view: str) -> FileSource:
    return FileSource(
        name=f"{view}_file",
        path=source_path(PIPELINE, view),
        file_format=ParquetFormat(),
        timestamp_field=EVENT_TIMESTAMP,
        created_timestamp_column=CREATED_TIMESTAMP,
    )


def _view(name: str) -> FeatureView:
    return FeatureView(
        name=name,
        entities=[reference_cell],
        schema=[Field(name=column, dtype=Float32) for column in VIEWS[name]],
        source=reference_push if name == PUSHED_VIEW else _file(name),
        ttl=timedelta(0) if name == STATIC_VIEW else USABLE_FOR,
    )


reference_cell = Entity(name="reference_cell", join_keys=["cell_id"], value_type=ValueType.INT64)
reference_push = PushSource(name="reference_observations", batch_source=_file(PUSHED_VIEW))
reference_now, reference_lags, reference_around, reference_place = (_view(name) for name in VIEWS)

reference_v1 = FeatureService(
    name="reference_v1", features=[reference_now, reference_lags, reference_around, reference_place]
)
