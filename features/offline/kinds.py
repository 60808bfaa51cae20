"""What the feature views of a registry declare of a source's columns, for rows that Feast takes from it as they are.

Feast materializes what `pull_…_from_table_or_query` gives, and makes whole numbers of doubles by leaving out what is
behind the point. It does not say which view it asks for, so the registry is asked which views stand on the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from feast import FeatureStore
from feast.data_source import DataSource
from feast.repo_config import RepoConfig

from almanac.errors import FeatureError
from features.asof import Files, paths_of
from features.declared_types import Misfit, declared, declared_type
from features.offline.sources import Source
from features.schemas import refusal

if TYPE_CHECKING:
    import pyarrow as pa

Kinds = Mapping[str, frozenset[str]]
"""Of columns of a source the value types that views declare."""


def kinds_of(config: RepoConfig, source: DataSource) -> Kinds:
    """The value types that the project's views declare of a source's columns, join keys among them.

    Types that hold anything are left out.
    """
    found: dict[str, set[str]] = {}
    own = {name: column for column, name in (source.field_mapping or {}).items()}
    for view in FeatureStore(config=config).list_all_feature_views(allow_cache=True):
        stands_on = getattr(view, "batch_source", None)
        if stands_on is None or stands_on.name != source.name:
            continue
        for field in (*view.features, *getattr(view, "entity_columns", ())):
            kind = field.dtype.to_value_type().name
            if declared_type(kind) is not None:
                found.setdefault(own.get(field.name, field.name), set()).add(kind)
    return {column: frozenset(kinds) for column, kinds in found.items()}


def agreed(kinds: Kinds) -> dict[str, str]:
    """The columns of which all views declare one type, with it."""
    return {column: next(iter(each)) for column, each in kinds.items() if len(each) == 1}


def as_declared(source: Source, kinds: Kinds, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches whose columns are as all views declare them; where views do not agree, a column that would do for each.

    Raises:
        FeatureError: a value is not what a view declares; names file, column and row.
    """
    one = agreed(kinds)
    for batch in batches:
        whole = batch
        for place, name in enumerate(batch.schema.names):
            for kind in sorted(kinds.get(name, ())):
                try:
                    column = declared(batch.column(place), kind)
                except Misfit as misfit:
                    raise _refusal(source, name, kind, misfit) from None
                if name in one:
                    whole = whole.set_column(place, name, column)
        yield whole


def typed(schema: pa.Schema, kinds: Kinds) -> pa.Schema:
    """A source's schema with the types that all views declare."""
    import pyarrow as pa

    for name, kind in agreed(kinds).items():
        place = schema.get_field_index(name)
        # Rounded doubles stay doubles: Feast takes no narrower ones for what on-demand views make of them.
        if place >= 0 and not (kind == "FLOAT" and schema.field(place).type == pa.float64()):
            schema = schema.set(place, schema.field(place).with_type(declared_type(kind)))
    return schema


def _refusal(source: Source, name: str, kind: str, misfit: Misfit) -> FeatureError:
    files = source.rows
    paths = paths_of(files, f"source {source.name}") if isinstance(files, Files) else []
    filesystem = files.filesystem if isinstance(files, Files) else None
    return refusal(f"source {source.name}", paths, name, (kind, misfit), filesystem)
