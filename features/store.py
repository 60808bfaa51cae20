"""The Feast store, configured from the settings: offline Parquet through DuckDB, online Redis, registry in Postgres."""

from __future__ import annotations

import json
import string
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from almanac.errors import FeatureError, Unavailable, UsageError
from almanac.pipeline import Pipeline
from almanac.postgres_url import postgres_address
from almanac.redis_url import redis_address
from almanac.settings import Settings
from features.definitions import REPO, definitions, places_of
from features.files import locked
from features.layout import definitions_for

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore

CONFIG_FILE = REPO / "feature_store.yaml"
REGISTRY_SCHEMA = "feast"
REGISTRY_LOCK = 0x616C6D616E6163  # "almanac": the advisory lock that one `apply` at a time holds
CONNECT_SECONDS_MAX = 5
REDIS_SECONDS_MAX = 5
NO_REDIS = "redis://127.0.0.1:1"  # never opened: stands in where only offline features are needed

_looked: ContextVar[dict[tuple[Any, ...], tuple[FeatureStore, FeatureService]] | None] = ContextVar(
    "looked", default=None
)


def preload() -> None:
    """Import Feast and our stores, which takes seconds; before threads are started that would do so at once.

    Python's import locks, one a module, can deadlock when two threads come upon a circle of imports from two sides.
    """
    import feast.infra.provider
    import feast.repo_operations
    import feast.types  # noqa: F401

    import features.offline_store
    import features.online_store  # noqa: F401


def redis_connection(url: str) -> str:
    """A Redis URL as Feast's own Redis store takes it: `host:port,key=value,…`. Ours reads the URL itself.

    Raises:
        UsageError: it cannot be read, or names a socket or an IPv6 address, which that form cannot.
    """
    address = redis_address(url)
    if address.host is None or ":" in address.host:
        raise UsageError(f"Feast's Redis store takes host:port, which {address.where} is not: use ours, or give a name")
    options = {name: value for name, value in address.client().items() if name not in ("host", "port")}
    options |= {"socket_timeout": REDIS_SECONDS_MAX, "socket_connect_timeout": REDIS_SECONDS_MAX}
    # Feast splits at commas and reads values as JSON; it stands between single quotes in the YAML.
    words = [f"{name}={_escape(json.dumps(value))}" for name, value in options.items()]
    return ",".join([address.where, *words])


def _escape(text: str) -> str:
    return text.replace(",", "\\u002c").replace("'", "\\u0027")


def registry_url(postgres_url: str) -> str:
    """SQLAlchemy's URL of the registry: the same database, a schema of its own, through psycopg 3.

    Raises:
        UsageError: the URL cannot be read.
    """
    address = postgres_address(postgres_url)
    own = {
        "options": f"{address.parameters.get('options', '')} -csearch_path={REGISTRY_SCHEMA}".strip(),
        "connect_timeout": address.parameters.get("connect_timeout") or str(CONNECT_SECONDS_MAX),
    }
    return address.engine_url("psycopg", more=own).render_as_string(hide_password=False)


def environment(settings: Settings) -> dict[str, str]:
    """The variables of `features/repo/feature_store.yaml`; with passwords, so never printed."""
    if settings.postgres_url:
        kind, path = "sql", registry_url(settings.postgres_url)
    else:
        kind, path = "file", str(settings.features_dir.absolute() / "registry.db")
    redis_url = settings.redis_url or NO_REDIS
    redis_address(redis_url)  # refused here, where it is known whose it is
    return {
        "ALMANAC_FEAST_REGISTRY_TYPE": kind,
        "ALMANAC_FEAST_REGISTRY_PATH": path.replace("'", "%27"),
        "ALMANAC_FEAST_REDIS": redis_url.replace("'", "%27"),  # it stands between single quotes
    }


def feature_store(settings: Settings, *, ties_replace: bool = False, create: bool = False) -> FeatureStore:
    """A Feast store. Opening it reads the registry once; it is not read again.

    Args:
        settings: `postgres_url` (unset: a registry file), `redis_url`, `features_dir`.
        ties_replace: a pushed row replaces one of the same event time.
        create: make the registry's tables where they are absent.

    Raises:
        Unavailable: the registry's Postgres does not answer.
    """
    import yaml  # type: ignore[import-untyped]
    from feast import RepoConfig

    from features.registry_guard import guarded_store
    from features.store_pool import SparingPool

    # ibis calls a method that this DuckDB deprecates; nobody who reads the log can change that.
    warnings.filterwarnings("ignore", message=r"fetch_arrow_table\(\) is deprecated", category=DeprecationWarning)
    config = yaml.safe_load(string.Template(CONFIG_FILE.read_text()).substitute(environment(settings)))
    config["online_store"]["ties_replace"] = ties_replace
    if config["registry"]["registry_type"] == "sql":
        config["registry"]["schema_mode"] = "auto" if create else "skip"
        config["registry"]["sqlalchemy_config_kwargs"] = {"poolclass": SparingPool}
    settings.features_dir.mkdir(parents=True, exist_ok=True)
    with registry_errors():
        return guarded_store(RepoConfig(**config, repo_path=REPO))


@contextmanager
def one_look() -> Iterator[None]:
    """Inside, a service is read from the registry once: whoever asks again sees the same definitions, and waits for
    nothing. What else is read comes by the same connection."""
    from features.store_pool import one_connection

    if _looked.get() is not None:
        yield
        return
    token = _looked.set({})
    try:
        with one_connection():
            yield
    finally:
        _looked.reset(token)


def open_service(
    pipeline: Pipeline, settings: Settings, *, ties_replace: bool = False
) -> tuple[FeatureStore, FeatureService]:
    """A Feast store with the pipeline's FeatureService; an empty registry is filled first.

    A registry that has the service is used as it is: new definitions arrive
    with `almanac feast apply`, when somebody decides so.

    Raises:
        FeatureError: no Feast file defines it.
        Unavailable: the registry's Postgres does not answer.
    """
    seen = _looked.get()
    asked = (pipeline.features, settings.postgres_url, settings.redis_url, settings.features_dir, ties_replace)
    if seen is not None and asked in seen:
        return seen[asked]
    found = _open_or_fill(pipeline, settings, ties_replace)
    if seen is not None:
        seen[asked] = found
    return found


def _open_or_fill(pipeline: Pipeline, settings: Settings, ties_replace: bool) -> tuple[FeatureStore, FeatureService]:
    try:
        return _open_service(pipeline, settings, ties_replace)
    except FeatureError:
        apply(settings)
    try:
        return _open_service(pipeline, settings, ties_replace)
    except FeatureError as error:
        raise FeatureError(
            f"pipeline {pipeline.name} names the FeatureService {pipeline.features!r}, which no Feast file in "
            f"{', '.join(str(place) for place in places_of(settings))} defines: add it there, name its file in "
            "ALMANAC_FEATURE_REPO, or correct the declaration"
        ) from error


def _open_service(pipeline: Pipeline, settings: Settings, ties_replace: bool) -> tuple[FeatureStore, FeatureService]:
    from features.store_pool import one_connection

    with registry_errors(), one_connection():
        store = feature_store(settings, ties_replace=ties_replace)
        return store, store.get_feature_service(pipeline.features)


def service_columns(pipeline: Pipeline, settings: Settings) -> tuple[str, ...]:
    """Names of the feature columns of a pipeline's FeatureService, in order.

    Raises:
        FeatureError: no Feast file defines it.
        Unavailable: the registry's Postgres does not answer.
    """
    _, service = open_service(pipeline, settings)
    return tuple(field.name for projection in service.feature_view_projections for field in projection.features)


def key_ttl_seconds(store: FeatureStore) -> int | None:
    """After which Redis forgets an entity's row that was not sent again, as `feature_store.yaml` says; None: never."""
    seconds: int | None = getattr(store.config.online_store, "key_ttl_seconds", None)
    return seconds


def service_kinds(pipeline: Pipeline, settings: Settings, service: str | None = None) -> dict[str, str]:
    """Feast's name of each feature column's declared type, such as `FLOAT`; raises as `service_columns` does.

    Args:
        service: another FeatureService than the pipeline's own.
    """
    store, declared = open_service(pipeline, settings)
    if service is not None:
        with registry_errors():
            declared = store.get_feature_service(service)
    return {
        field.name: field.dtype.to_value_type().name
        for projection in declared.feature_view_projections
        for field in projection.features
    }


@contextmanager
def registry_errors() -> Iterator[None]:
    """Map what Feast's registry raises onto the project's errors."""
    from feast.errors import ConflictingFeatureViewNames, FeastModuleImportError, FeastObjectNotFoundException
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sqlalchemy.exc import OperationalError, ProgrammingError

    try:
        yield
    except DecodeError as error:  # of a project's row, or of a registry that is a file
        raise FeatureError(
            "Feast's registry holds bytes that are no definition: find out who wrote them, delete the project's row or "
            "the file as the registry's owner, and run `almanac feast apply`"
        ) from error
    except FeastModuleImportError as error:
        if isinstance(error.__cause__, FeatureError):
            raise error.__cause__ from error
        raise
    except OperationalError as error:
        reason = (str(error.orig).splitlines() or ["no answer"])[0]
        raise Unavailable(f"Feast's registry in Postgres did not answer ({reason}): see `almanac status`") from error
    except (ProgrammingError, FeastObjectNotFoundException, FileNotFoundError) as error:
        reason = (str(getattr(error, "orig", error)).splitlines() or ["empty"])[0]
        raise FeatureError(f"Feast's registry lacks the definitions ({reason}): run `almanac feast apply`") from error
    except ConflictingFeatureViewNames as error:  # Feast asks in no fixed order, this at times before it reads a row
        raise FeatureError(
            f"Feast's registry has another kind of view under a name of the Feast files ({error}): find out who wrote "
            "it, and delete its row from the registry as its owner, or name the view otherwise"
        ) from error


def apply(settings: Settings, *, prune: bool = False) -> None:
    """Register the definitions of all Feast files; again changes nothing.

    Args:
        settings: `feature_repo` names files and folders besides `features/repo/`.
        prune: remove from the registry what no file defines, as `feast apply` does. Not the default: another
            process may know more files, and its pipelines must keep their features.

    Raises:
        FeatureError: a Feast file is not usable; says which and why.
        Unavailable: the registry's Postgres does not answer, or Redis when something is removed.
    """
    from feast.repo_operations import extract_objects_for_apply_delete

    from features.online import redis_errors
    from features.reading_plans import write_plans

    lock = _database_lock(settings.postgres_url) if settings.postgres_url else nullcontext()
    with locked(settings.features_dir / "apply.lock"), lock, definitions_for(settings), registry_errors():
        store = feature_store(settings, create=True)
        found = definitions(store.project, places_of(settings))
        keep, delete, _, _ = extract_objects_for_apply_delete(store.project, store.registry, found)
        with redis_errors():  # rows of a view that is removed are removed too
            store.apply(keep, objects_to_delete=delete if prune else [], partial=False)
        write_plans(store, settings)


@contextmanager
def _database_lock(postgres_url: str) -> Iterator[None]:
    """One `apply` at a time in this database, and the registry's schema made; released with the connection."""
    import psycopg
    from psycopg import sql

    try:
        url = postgres_address(postgres_url).url
        with psycopg.connect(url, connect_timeout=CONNECT_SECONDS_MAX, autocommit=True) as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", (REGISTRY_LOCK,))
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(REGISTRY_SCHEMA)))
            yield
    except psycopg.OperationalError as error:
        reason = (str(error).splitlines() or ["no answer"])[0]
        raise Unavailable(f"Feast's registry in Postgres did not answer ({reason}): see `almanac status`") from error
