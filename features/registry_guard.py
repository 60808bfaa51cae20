"""Feast's registry is data: nothing that stands there is run.

Feast keeps functions in its registry, pickled and as text, and runs both as it reads a row. It also imports modules
that a row names. No Feast file of ours defines a view with a function, so none is read: whoever may write to the
registry may change what is read, and cannot run code by it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from almanac.errors import FeatureError

if TYPE_CHECKING:
    from feast import FeatureStore, RepoConfig

PACKAGE = "feast"
"""Of whose modules a row may name a class, such as a data source's."""
_READERS = ("_get_object", "_list_objects")
"""Methods of Feast's SQL registry that make objects of rows."""
_reading: ContextVar[bool] = ContextVar("reading a registry", default=False)


def guarded_store(config: RepoConfig) -> FeatureStore:
    """A Feast store whose registry runs nothing of what it reads."""
    from feast import FeatureStore

    _guard_feast()

    class Guarded(FeatureStore):  # type: ignore[misc]
        def _create_registry(self) -> Any:
            with _data_only():
                return _guarded(super()._create_registry())

    return Guarded(config=config)


def _guarded(registry: Any) -> Any:
    """The same registry, every method of which reads data alone; it stays an instance of its own class."""

    class Guarded(type(registry)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            return found if name.startswith("__") or not callable(found) else _as_data(found)

    registry.__class__ = Guarded
    return registry


def _naming(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that reads rows of a table; a row that is no valid definition is named."""
    signature = inspect.signature(method)

    @wraps(method)
    def called(*arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except Exception as error:
            asked = signature.bind(*arguments, **named).arguments
            refusal = _invalid_row(asked) if _reading.get() else None
            if refusal is None:  # the database did not answer, or there is no such row
                raise
            raise refusal from error

    return called


def _invalid_row(asked: dict[str, Any]) -> FeatureError | None:
    """What to say of the first row that Feast cannot read, of those that were asked for; None if there is none."""
    from feast.errors import FeastError
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    table = asked["table"]
    rows = select(table).where(table.c.project_id == asked["project"])
    if "name" in asked:
        rows = rows.where(getattr(table.c, asked["id_field_name"]) == asked["name"])
    try:
        with asked["self"].read_engine.begin() as connection:
            found = connection.execute(rows).all()
    except SQLAlchemyError:
        return None
    for row in found:
        try:
            asked["python_class"].from_proto(asked["proto_class"].FromString(row._mapping[asked["proto_field_name"]]))
        except FeatureError as error:
            return error
        except Exception as error:  # noqa: BLE001 - Feast raises anything over what it cannot read
            if isinstance(error, FeastError) and isinstance(error.__cause__, FeatureError):
                return error.__cause__
            reason = ascii((str(error).splitlines() or [""])[0])[1:-1][:120] or type(error).__name__
            return FeatureError(
                f"Feast's registry has a row in {table.name} that is no valid definition, {ascii(row[0])[:80]} "
                f"({reason}): find out who wrote it, delete it from the registry as its owner, and run "
                "`almanac feast apply`"
            )
    return None


def _as_data(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def called(*arguments: Any, **named: Any) -> Any:
        with _data_only():
            return method(*arguments, **named)

    return called


@contextmanager
def _data_only() -> Iterator[None]:
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


@cache
def _guard_feast() -> None:
    """Stand before each place at which Feast runs or imports what a row says; for others nothing changes."""
    import importlib

    from feast import importer, stream_feature_view
    from feast.infra.registry.sql import SqlRegistry
    from feast.transformation import udf_rehydrate

    pickling = stream_feature_view.dill  # one module for all of Feast
    pickling.loads = _refusing(pickling.loads)
    udf_rehydrate.rehydrate_udf_from_source = _refusing(udf_rehydrate.rehydrate_udf_from_source)

    for reader in _READERS:  # the registry reads all its rows as it is made
        setattr(SqlRegistry, reader, _naming(getattr(SqlRegistry, reader)))

    def import_module(name: str, package: str | None = None) -> Any:
        if _reading.get() and not name.startswith(f"{PACKAGE}."):
            raise _refusal(f"names the module {ascii(name)[:80]}")
        return importlib.import_module(name, package)

    importer.importlib = SimpleNamespace(import_module=import_module)


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        if _reading.get():
            raise _refusal("holds a function")
        return function(*arguments, **named)

    return called


def _refusal(what: str) -> FeatureError:
    return FeatureError(
        f"Feast's registry {what}, which no Feast file of this deployment defines; it is not run: find out who wrote "
        "it, and delete its row from the registry as its owner"
    )
