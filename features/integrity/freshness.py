"""Why an entity has no usable offline features at a moment: view by view, what is missing and what has expired."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from almanac.clock import at_micros, need_utc
from almanac.feature_checks import words
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from features.archived import archived_files
from features.own_files import folder_of, literal, quoted
from features.tables import Table, opened, tables_of

ENTITIES_MAX = 100
"""Entities that are asked for at once."""


def why_lacking(
    pipeline: Pipeline, settings: Settings, entities: Sequence[EntityKey], moment: datetime
) -> dict[EntityKey, tuple[str, ...]]:
    """Views without a usable row of some entities; those of entities that lack none are empty.

    Args:
        entities: at most `ENTITIES_MAX` are looked at.
        moment: aware; what their features were asked for.

    Raises:
        FeatureError: a view's files cannot be read.
        Unavailable: the registry does not answer.
    """
    asked, moment = list(dict.fromkeys(entities))[:ENTITIES_MAX], need_utc(moment)
    found: dict[EntityKey, list[str]] = {entity: [] for entity in asked}
    for table in tables_of(pipeline, settings) if asked else ():
        newest = _newest(table, asked, moment)
        for entity in asked:
            if entity not in newest:
                found[entity].append(f"{table.view} is missing")
            elif table.ttl is not None and moment - newest[entity] > table.ttl:
                old = words(moment - newest[entity])
                found[entity].append(f"{table.view} has expired ({old} old, usable for {words(table.ttl)})")
    return {entity: tuple(views) for entity, views in found.items()}


def _newest(table: Table, entities: list[EntityKey], moment: datetime) -> dict[EntityKey, datetime]:
    """Event time of each entity's newest row up to a moment, whatever its age."""
    key, when = quoted(table.key), quoted(table.moment)
    files = [*table.files, *archived_files(folder_of(table.path), None, moment)]
    with opened(table, files=files) as (connection, rows):
        found = connection.execute(
            f"SELECT {key}, epoch_us(max({when})) FROM {rows} WHERE {when} <= {literal(moment)} "  # noqa: S608
            f"AND {key} IN (SELECT unnest(?)) GROUP BY {key}",
            [entities],
        ).fetchall()
    return {entity: at_micros(micros) for entity, micros in found}
