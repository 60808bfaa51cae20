"""Layouts and keys of Feast's feature views: what both Feast's store and the columnar paths pack and read by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from almanac.errors import FeatureError
from features.packed.codec import Column, Layout
from features.packed.keys import Keys

if TYPE_CHECKING:
    from feast import FeatureView

ENTITY_LESS = Column("__dummy_id", "STRING")


def view_name(view: FeatureView, *, versioned: bool = False) -> str:
    """What a view is called online: with its version where the registry keeps versions apart."""
    from feast.infra.online_stores.helpers import compute_versioned_name

    name: str = compute_versioned_name(view, versioned)
    return name


def layout_of(project: str, view: FeatureView, *, versioned: bool = False) -> Layout:
    """The layout of a view's values: its features in their order.

    Raises:
        FeatureError: it has no features.
    """
    columns = tuple(Column(field.name, field.dtype.to_value_type().name) for field in view.features)
    if not columns:
        raise FeatureError(f"view {view.name} has no features: give it a schema")
    return Layout(project=project, view=view_name(view, versioned=versioned), columns=columns)


def keys_of(project: str, view: FeatureView, *, versioned: bool = False) -> Keys:
    """How a view's entities are named online; a view without entities has one, of Feast's name for it."""
    joined = tuple(Column(column.name, column.dtype.to_value_type().name) for column in view.entity_columns)
    return Keys(project=project, view=view_name(view, versioned=versioned), join_keys=joined or (ENTITY_LESS,))
