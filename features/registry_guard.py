"""Feast's registry is data: nothing that stands there is run.

Feast keeps functions in its registry, pickled and as text, and runs both as it reads a row. It also imports modules
that a row names. No Feast file of ours defines a view with a function, so none is read: whoever may write to the
registry may change what is read, and cannot run code by it.
"""

from __future__ import annotations

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
    from feast.transformation import udf_rehydrate

    pickling = stream_feature_view.dill  # one module for all of Feast
    pickling.loads = _refusing(pickling.loads)
    udf_rehydrate.rehydrate_udf_from_source = _refusing(udf_rehydrate.rehydrate_udf_from_source)

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
