"""What features are read from, as one digest: equal digests mean that reading them again would give the same.

The digest covers the FeatureService's definitions, the code of `features/`,
the moment that is asked for, and every file by what the file system says of
it: inode, size, times of its last change in nanoseconds. It reads no file, so
that it costs milliseconds whatever the files hold. It is empty where that is
not enough: for sources that are not files, and for files that changed so
lately that a second change could have the same time.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from almanac.clock import format_time
from almanac.pipeline import Pipeline
from almanac.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore

SETTLED_SECONDS = 2.0
"""Age from which a file's time of change tells it from a later change: file systems count in coarse steps."""
FILES_MAX = 100_000


def source_digest(pipeline: Pipeline, settings: Settings, as_of: datetime, cutoff: datetime) -> str:
    """The digest of what the features of a run are read from; empty if it cannot be told.

    Take it before the features are read: a change in between then shows the next time.

    Raises:
        FeatureError: the FeatureService is not defined.
        Unavailable: the registry does not answer.
    """
    from features.store import open_service, registry_errors

    store, service = open_service(pipeline, settings)
    with registry_errors():
        views = list(_all_views(pipeline, store, service))
    patterns = [view["path"] for view in views]
    if None in patterns:
        return ""
    folder = settings.features_dir / pipeline.name
    archived = sorted(str(path) for path in folder.glob("*/archive/*/*.parquet"))
    files = sorted({path for pattern in patterns for path in glob.glob(str(pattern))} | set(archived))
    if len(files) > FILES_MAX:
        return ""
    found = _stats(files)
    if found is None:
        return ""
    # Events up to the cutoff count; without any it plays no part.
    asked = [format_time(as_of), format_time(cutoff) if archived else ""]
    text = json.dumps([pipeline.name, pipeline.entity, asked, views, found, _code()], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def definitions_digest(pipeline: Pipeline, settings: Settings) -> str:
    """The digest of a FeatureService's definitions: its views, their columns, keys, TTLs and sources.

    Raises:
        FeatureError: the FeatureService is not defined.
        Unavailable: the registry does not answer.
    """
    from features.store import open_service, registry_errors

    store, service = open_service(pipeline, settings)
    with registry_errors():
        text = json.dumps(list(_all_views(pipeline, store, service)), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _all_views(pipeline: Pipeline, store: FeatureStore, service: FeatureService) -> Iterator[dict[str, Any]]:
    """The views of the entity, and where lists are ranked those of the items."""
    yield from _views(store, service)
    if pipeline.ranking is not None:
        yield from _views(store, store.get_feature_service(pipeline.ranking.features))


def _views(store: FeatureStore, service: FeatureService) -> Iterator[dict[str, Any]]:
    for projection in service.feature_view_projections:
        view = store.get_feature_view(projection.name)
        source = view.batch_source
        is_file = type(source).__name__ == "FileSource" and "://" not in str(source.path)
        yield {
            "view": projection.name_to_use(),
            "features": [(field.name, str(field.dtype)) for field in projection.features],
            "keys": [list(view.join_keys), dict(projection.join_key_map or {})],
            "ttl": None if view.ttl is None else view.ttl.total_seconds(),
            "path": _pattern(str(source.path)) if is_file else None,
            "asked": None if is_file else str(source.get_table_query_string()),
            "columns": [source.timestamp_field, source.created_timestamp_column, dict(source.field_mapping or {})],
        }


def _pattern(path: str) -> str:
    return f"{path}/**/*.parquet" if os.path.isdir(path) else path


def _stats(files: list[str]) -> list[list[Any]] | None:
    """What the file system says of each file; None if one is gone, or changed just now."""
    found, settled = list[list[Any]](), time.time() - SETTLED_SECONDS
    for path in files:
        try:
            status = os.stat(path)
        except OSError:
            return None
        if max(status.st_mtime, status.st_ctime) > settled:
            return None
        found.append([path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return found


@cache
def _code() -> str:
    """A digest of the code that reads features."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
