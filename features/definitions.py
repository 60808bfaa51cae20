"""Feast's definitions: every object in the Python files of `features/repo/` and of what the settings name.

Files outside the checkout, or folders of them, are named by `ALMANAC_FEATURE_REPO`; every Python file of a folder
is executed, so that one which holds other programs as well is better named file by file. All files share
one Feast project; what no file defines any more stays registered until somebody
asks for it to be removed, for it may be another deployment's.
"""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from almanac.errors import AlmanacError, FeatureError
from almanac.settings import PROJECT_ROOT, Settings

REPO = PROJECT_ROOT / "features" / "repo"
FILES_MAX = 1_000


def places_of(settings: Settings) -> tuple[Path, ...]:
    """The Feast files, and folders of them: the checkout's own folder first.

    Raises:
        FeatureError: what `ALMANAC_FEATURE_REPO` names is not there.
    """
    named = [Path(part.strip()).expanduser() for part in settings.feature_repo.split(",") if part.strip()]
    for place in named:
        if not (place.is_dir() or (place.is_file() and place.suffix == ".py")):
            raise FeatureError(f"{place} is no folder and no .py file: correct ALMANAC_FEATURE_REPO")
    return tuple(dict.fromkeys(place.resolve() for place in (REPO, *named)))


def definitions(project: str, places: tuple[Path, ...]) -> Any:
    """All Feast objects of files and of folders' files, executed anew, for their paths may depend on the settings.

    Returns:
        Feast's `RepoContents`.

    Raises:
        FeatureError: a file cannot be executed, or two define different objects of one kind and name.
    """
    from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView, Project, StreamFeatureView
    from feast.data_source import DataSource, PushSource
    from feast.repo_contents import RepoContents

    files = [file for place in places for file in (sorted(place.glob("*.py")) if place.is_dir() else [place])]
    if len(files) > FILES_MAX:
        raise FeatureError(f"{len(files)} Feast files are more than {FILES_MAX}: name fewer in ALMANAC_FEATURE_REPO")
    found: dict[type, dict[str, tuple[Any, Path]]] = {}
    for file in files:
        for value in _execute(file):
            if isinstance(value, OnDemandFeatureView | StreamFeatureView):
                raise FeatureError(
                    f"{file}: {value.name} is a {type(value).__name__}, which batch and stream would not compute "
                    "alike: compute its columns where the Parquet is written, and make it a FeatureView"
                )
            for kind in (Entity, FeatureView, FeatureService, DataSource):
                if isinstance(value, kind):
                    _add(found.setdefault(kind, {}), kind.__name__, value, file)
    views = _all(found, FeatureView)
    sources = _all(found, DataSource)
    sources += [source.batch_source for source in sources if isinstance(source, PushSource) and source.batch_source]
    sources += [view.batch_source for view in views if view.batch_source is not None]
    return RepoContents(
        projects=[Project(name=project)],
        data_sources=list({source.name: source for source in sources}.values()),
        entities=_all(found, Entity),
        feature_views=views,
        feature_services=_all(found, FeatureService),
        on_demand_feature_views=[],
        stream_feature_views=[],
        label_views=[],
        permissions=[],
    )


def views_by_service(places: tuple[Path, ...]) -> dict[str, set[str]]:
    """The names of each FeatureService's views.

    Raises:
        FeatureError: a file cannot be executed, or two define different objects of one kind and name.
    """
    services = definitions("views_by_service", places).feature_services
    return {service.name: {view.name for view in service.feature_view_projections} for service in services}


def _execute(file: Path) -> list[Any]:
    spec = spec_from_file_location(f"almanac_feast_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise FeatureError(f"{file} is not a Python file that can be imported: correct or remove it")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except AlmanacError:
        raise
    except Exception as error:  # a Feast file is its author's code, and may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise FeatureError(f"{file} cannot be executed ({reason}): correct it or remove it") from error
    return list(vars(module).values())


def _add(held: dict[str, tuple[Any, Path]], kind: str, value: Any, file: Path) -> None:
    known, where = held.setdefault(value.name, (value, file))
    if known is not value and known != value:
        places = f"{where} and {file}" if where != file else f"{file}, twice,"
        raise FeatureError(f"{places} define different objects as {kind} {value.name!r}: rename one")


def _all(found: dict[type, dict[str, tuple[Any, Path]]], kind: type) -> list[Any]:
    return [value for value, _ in found.get(kind, {}).values()]
