"""Feast's source of a view whose files this project writes."""

from __future__ import annotations

from feast import FileSource
from feast.data_format import ParquetFormat

from features.layout import CREATED_TIMESTAMP, EVENT_TIMESTAMP, source_path


def file_of(pipeline: str, view: str) -> FileSource:
    """The Parquet files of a view, with the event time and when a row was written."""
    return FileSource(
        name=f"{view}_file",
        path=source_path(pipeline, view),
        file_format=ParquetFormat(),
        timestamp_field=EVENT_TIMESTAMP,
        created_timestamp_column=CREATED_TIMESTAMP,
    )
