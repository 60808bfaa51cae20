"""Find the declared pipelines: every public `Pipeline` object in the modules that the settings name."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from almanac.errors import AlmanacError, DeclarationError, UnknownPipeline
from almanac.pipeline import Pipeline
from almanac.settings import settings


def _modules(names: str) -> list[ModuleType]:
    found: list[ModuleType] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        try:
            if name.endswith(".py"):
                found.append(_load_file(Path(name).resolve()))
                continue
            module = importlib.import_module(name)
            found.append(module)
            for entry in pkgutil.iter_modules(getattr(module, "__path__", ())):
                found.append(importlib.import_module(f"{name}.{entry.name}"))
        except AlmanacError:
            raise
        except TypeError as error:  # a missing or unknown field of a declaration
            raise DeclarationError(f"{name}: {error}: complete or correct the declaration") from None
        except (ImportError, OSError, SyntaxError) as error:
            raise DeclarationError(f"{name} cannot be imported ({error}): correct it or ALMANAC_PIPELINES") from error
        except Exception as error:  # a declaration is its author's code, and may raise anything
            what = f"{type(error).__name__}: {error}"
            raise DeclarationError(f"{name} cannot be imported ({what}): correct it or ALMANAC_PIPELINES") from error
    return found


def places(names: str) -> tuple[str, ...]:
    """The modules, and the files ending in `.py`, that the declarations of `ALMANAC_PIPELINES` stand in."""
    found: list[str] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name.endswith(".py"):
            found.append(str(Path(name).resolve()))
            continue
        inside = pkgutil.iter_modules(getattr(importlib.import_module(name), "__path__", ()))
        found += [name, *(f"{name}.{entry.name}" for entry in inside)]
    return tuple(found)


def _load_file(path: Path) -> ModuleType:
    name = f"almanac_declarations_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DeclarationError(f"{path} is not a Python file: correct ALMANAC_PIPELINES")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_pipelines(names: str) -> dict[str, Pipeline]:
    """Import the named modules and return their pipelines by name.

    Raises:
        DeclarationError: a module fails to import, or two pipelines share a name.
    """
    found: dict[str, Pipeline] = {}
    for module in _modules(names):
        for name, value in vars(module).items():
            if name.startswith("_") or not isinstance(value, Pipeline):
                continue  # a declaration may be imported under a private name, to make another from it
            if found.setdefault(value.name, value) is not value:
                raise DeclarationError(f"two pipelines are named {value.name!r}: rename the one in {module.__name__}")
    if not found:
        raise DeclarationError(f"no pipeline is declared in {names}: declare one, or correct ALMANAC_PIPELINES")
    return dict(sorted(found.items()))


@lru_cache(maxsize=1)
def pipelines() -> dict[str, Pipeline]:
    """The pipelines of this process's settings, by name."""
    return load_pipelines(settings().pipelines)


def pipeline(name: str) -> Pipeline:
    """One pipeline by name.

    Raises:
        UnknownPipeline: none has this name; says which exist.
    """
    found = pipelines()
    if name not in found:
        known = ", ".join(found) or "none"
        raise UnknownPipeline(f"no pipeline {name!r} is declared (declared: {known}): see `almanac pipelines`")
    return found[name]
