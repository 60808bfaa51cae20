"""What a ranking ranks, out of offline features: items and entities as they were at a moment, and what was taken."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from almanac.clock import MICROSECOND, need_utc
from almanac.errors import DeclarationError, FeatureError
from almanac.interactions import Interactions
from almanac.pipeline import Pipeline
from almanac.ragged import Ragged, Wholes, offsets_of
from almanac.ranking import HISTORY_TIMES, NEVER, Entities, Items
from almanac.ranking_declared import ANY_ITEM, Ranking
from almanac.settings import Settings
from features import rankable
from features.layout import EVENT_TIMESTAMP, STATIC_SINCE
from features.offline.reading import file_errors, views_and_refs
from features.store import open_service, registry_errors

if TYPE_CHECKING:
    import pyarrow as pa

    from features.asof import View

BASKET_AT, BASKET_ITEMS, SEEN_AT = "basket_at", "basket_items", "seen_at"


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What entities took: for each its key, the moment in microseconds since 1970, and the keys of the items."""

    keys: pa.Array
    moments: Wholes
    items: Ragged

    def __len__(self) -> int:
        return len(self.moments)


class NoItemYet(FeatureError):
    """No item has features at the moment that was asked for."""


def ranking_of(pipeline: Pipeline) -> Ranking:
    """The pipeline's declared ranking.

    Raises:
        DeclarationError: it has none.
    """
    if pipeline.ranking is None:
        raise DeclarationError(f"pipeline {pipeline.name} ranks nothing: declare ranking=Ranking(item=…, features=…)")
    return pipeline.ranking


def items_at(pipeline: Pipeline, settings: Settings, moment: datetime) -> Items:
    """All items that the declared views know at a moment, within their ttl, as they were then; raises as `range_at`."""
    return range_at(pipeline, settings, moment).items


def range_at(pipeline: Pipeline, settings: Settings, moment: datetime) -> rankable.Range:
    """The same, and how new they are: what lists of entities without anything newer speak as of.

    Raises:
        NoItemYet: no item is known at the moment.
        FeatureError: no features were ingested, or the service is not registered.
        Unavailable: the registry does not answer.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from features.asof import latest

    ranking, moment = ranking_of(pipeline), need_utc(moment)
    tables = []
    of_any, of_all = [NEVER], [NEVER]
    with file_errors(pipeline):
        for view in _views(pipeline, settings, ranking.features, (moment, moment + MICROSECOND)):
            since = moment - view.ttl if view.ttl else STATIC_SINCE
            batches = list(latest(view, since, moment))
            if batches:
                found = pa.Table.from_batches(batches)
                times = found[view.timestamp].cast(pa.timestamp("us", "UTC")).cast(pa.int64())
                of_all.append(pc.max(times).as_py())
                of_any += times.filter(pc.equal(found[ranking.item].cast(pa.string()), ANY_ITEM)).to_pylist()
                tables.append(found.select([ranking.item, *view.features.values()]).combine_chunks())
    if not tables:
        raise NoItemYet(
            f"pipeline {pipeline.name} knows no item at {moment:%Y-%m-%d %H:%M} UTC: run its ingest step up to then"
        )
    keys = pc.unique(pa.concat_arrays([_one(table[ranking.item]) for table in tables]))
    columns: dict[str, Any] = {}
    lists: dict[str, Ragged] = {}
    for table in tables:
        rows = pc.index_in(keys, value_set=_one(table[ranking.item]))
        for name in table.column_names[1:]:
            column = _one(table[name]).take(rows)
            if _is_list(column.type):
                lists[name] = ragged_of(column)
            else:
                columns[name] = _numbers(pipeline, ranking.item, name, column)
    newest = max(of_any) if max(of_any) > NEVER else max(of_all)
    return rankable.Range(Items.of(keys.to_pylist(), columns, lists), newest)


def newest_events(table: pa.Table) -> Wholes:
    """The newest event that each row of the entity's views knows of, microseconds since 1970; `NEVER` of none.

    Args:
        table: columns of the entity's FeatureService, a history's among them.
    """
    column = ragged_of(_one(table[SEEN_AT if SEEN_AT in table.column_names else HISTORY_TIMES]))
    found = np.full(len(column), NEVER, np.int64)
    some = np.flatnonzero(column.lengths)
    if len(some):
        found[some] = np.maximum.reduceat(column.values.astype(np.int64), column.offsets[some])
    return found


def entities_of(pipeline: Pipeline, table: pa.Table, items: Items, moments: Wholes) -> Entities:
    """Rows of the entity's views as what is ranked.

    Args:
        table: the entity's column, and those of its FeatureService, whole numbers as they are, nothing null.
        items: among which lists of items find their places.
        moments: that each row is to speak as of, microseconds since 1970.
    """
    import pyarrow as pa

    if "arrow" not in items.memo:
        items.memo["arrow"] = pa.array(items.keys, pa.string())
    keys = items.memo["arrow"]
    lists: dict[str, Ragged] = {}
    columns: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        column = _one(table[name])
        if name in (pipeline.entity, EVENT_TIMESTAMP):
            continue
        if not _is_list(column.type):
            columns[name] = column.to_numpy(zero_copy_only=False)
            continue
        lists[name] = ragged_of(column, among=keys)
    return rankable.entities_of(pipeline, _one(table[pipeline.entity]).to_pylist(), moments, columns, lists)


def history_at(pipeline: Pipeline, settings: Settings, entities: pa.Table) -> pa.Table:
    """The rows of the entity's views at each entity's moment, point in time, whole numbers as they are.

    Args:
        entities: columns `<entity>` and `event_timestamp`, microseconds in UTC.

    Raises:
        FeatureError: no features were ingested, or the service is not registered.
        Unavailable: the registry does not answer.
    """
    from features.offline.retrieval import Entities as Asked
    from features.offline.retrieval import retrieved

    asked = Asked.of(entities, EVENT_TIMESTAMP)
    with file_errors(pipeline):
        views = _views(pipeline, settings, pipeline.features, (asked.earliest, asked.latest))
        return retrieved(asked, views).combine_chunks()


def taken_between(pipeline: Pipeline, settings: Settings, start: datetime, end: datetime) -> Taken:
    """What entities took from `start` to `end`, both included, by moment and entity; returns take nothing.

    Raises:
        DeclarationError: the pipeline's source is no interactions.
        FeatureError: no features were ingested, or the view is not registered.
        Unavailable: the registry does not answer.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from features.offline.sources import opened, rows

    if not isinstance(pipeline.source, Interactions):
        raise DeclarationError(
            f"pipeline {pipeline.name} has no interactions to learn from: declare source=Interactions(…)"
        )
    store, _ = open_service(pipeline, settings)
    with registry_errors():
        view = store.get_feature_view(pipeline.source.history)
    with file_errors(pipeline):
        source = opened(store.config, view.batch_source, earliest=start, latest=end)
        columns = [pipeline.entity, EVENT_TIMESTAMP, BASKET_AT, BASKET_ITEMS]
        found = rows(source, columns, EVENT_TIMESTAMP, start, end).read_all()
    moments = found[EVENT_TIMESTAMP].cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    found = found.set_column(1, EVENT_TIMESTAMP, moments)
    found = found.filter(pc.equal(found[EVENT_TIMESTAMP], found[BASKET_AT].cast(pa.int64())))
    found = found.sort_by([(EVENT_TIMESTAMP, "ascending"), (pipeline.entity, "ascending")]).combine_chunks()
    # An event that was archived and ingested stands in two files: of one entity and moment the first will do.
    keys, times = _one(found[pipeline.entity]), _one(found[EVENT_TIMESTAMP]).to_numpy()
    again = np.zeros(len(found), np.bool_)
    if len(found) > 1:
        same = pc.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
        again[1:] = same & (times[1:] == times[:-1])
    found = found.filter(pa.array(~again)).combine_chunks()
    return Taken(
        keys=_one(found[pipeline.entity]),
        moments=_one(found[EVENT_TIMESTAMP]).to_numpy(),
        items=ragged_of(_one(found[BASKET_ITEMS])),
    )


def ragged_of(column: pa.Array, among: pa.Array | None = None) -> Ragged:
    """An Arrow column of lists; a null is an empty one.

    Args:
        among: texts become their places among these, int32, -1 for what is not there; None leaves texts.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = pc.list_flatten(column)
    plain = values.type in (pa.string(), pa.large_string())
    if plain and among is not None:
        values, plain = pc.fill_null(pc.index_in(values.cast(pa.string()), value_set=among), -1), False
    return Ragged(values.to_numpy(zero_copy_only=False) if plain else values.to_numpy(), offsets_of(lengths))


def _views(
    pipeline: Pipeline, settings: Settings, service: str, bounds: tuple[datetime | None, datetime | None]
) -> list[View]:
    from features.offline.retrieval import views_of

    store, _ = open_service(pipeline, settings)
    with registry_errors():
        views, refs = views_and_refs(store, store.get_feature_service(service))
    return views_of(store.config, views, refs, False, bounds)


def _numbers(pipeline: Pipeline, item: str, name: str, column: pa.Array) -> NDArray[np.float64]:
    import pyarrow as pa

    try:
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise FeatureError(
            f"pipeline {pipeline.name}: {name} of the {item} is {column.type}, expected numbers: leave it out of the "
            "FeatureService that ranking.features names"
        ) from None


def _one(column: Any) -> Any:
    """A column as one array."""
    import pyarrow as pa

    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
