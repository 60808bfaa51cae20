"""What features are read from, as one digest: equal digests mean that reading them again would give the same.

The digest covers the FeatureService's definitions, the code that reads
features with all that it imports, the moment that is asked for, and every file
by what the file system says of it: inode, size, times of its last change in
nanoseconds. It reads no file, so that it costs milliseconds whatever the files
hold. It is empty where that is not enough: for sources that are not files, for
a source of which no file is found, and for files that changed so lately that a
second change could have the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from almanac.clock import format_time
from almanac.code.following import code_of
from almanac.errors import FeatureError
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from features.archived import archived_files
from features.asof.footers import paths_of
from features.asof.view import Files

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore

SETTLED_SECONDS = 2.0
"""Age from which a file's time of change tells it from a later change: file systems count in coarse steps."""
FILES_MAX = 100_000
READING = ("features.recent", "features.ranked", "features.offline_store", "features.tables")
"""Where the reading of features begins; what these import is found."""
FOR_PEOPLE = frozenset({"description", "tags", "owner", "meta"})
"""Fields of Feast's definitions that change no feature: what is said to people, and the times of registering."""


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
    folder = settings.features_dir / pipeline.name
    archived = {str(path) for path in folder.glob("*/archive/*/*.parquet")}
    files = set(archived)
    for view in views:
        mine = _files_of(view)
        if not mine:
            return ""
        beside = archived_files(_folder_of(view["path"]), None, None)
        archived.update(beside)
        files.update(mine, beside)
    if len(files) > FILES_MAX:
        return ""
    found = _stats(sorted(files))
    if found is None:
        return ""
    # Events up to the cutoff count; without any it plays no part.
    asked = [format_time(as_of), format_time(cutoff) if archived else ""]
    text = json.dumps([pipeline.name, pipeline.entity, asked, views, found, code_of(READING).digest], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def definitions_digest(pipeline: Pipeline, settings: Settings) -> str:
    """The digest of a FeatureService's definitions: all that its views, their sources and entities say of features.

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
    from feast.feature_view import DUMMY_ENTITY_NAME

    for projection in service.feature_view_projections:
        view = store.get_feature_view(projection.name)
        source = view.batch_source
        is_file = type(source).__name__ == "FileSource" and "://" not in str(source.path)
        entities = [store.get_entity(name) for name in view.entities if name != DUMMY_ENTITY_NAME]
        defined = [_said(one.to_proto()) for one in (projection, view, *entities)]
        defined[1]["spec"].pop("features", None)  # those that the service has are the projection's
        yield {
            "view": projection.name_to_use(),
            "defined": defined,
            "path": str(source.path) if is_file else None,
        }


def _said(proto: Any) -> Any:
    """All that a definition says, but what it says to people, and when it was registered."""
    from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]

    return _without(MessageToDict(proto), FOR_PEOPLE)


def _without(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(one, names) for name, one in value.items() if name not in names}
    return [_without(one, names) for one in value] if isinstance(value, list) else value


def _files_of(view: dict[str, Any]) -> list[str]:
    """The files that a view is read from, as the join finds them; none of a source that is not files."""
    if view["path"] is None:
        return []
    try:
        return paths_of(Files(paths=(view["path"],)), "a view")
    except FeatureError:
        return []


def _folder_of(path: str) -> Path:
    return Path(path) if Path(path).is_dir() else Path(path).parent


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
