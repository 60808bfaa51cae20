"""Versions of what others wrote: of the distributions whose modules are imported, and of all that these require."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_SITES = frozenset({"site-packages", "dist-packages"})
_UNCONDITIONAL = re.compile(r"([A-Za-z0-9][\w.-]*)[^;\[@]*")
"""A requirement without extras, address or marker."""
ABSENT = "absent"
"""In place of a version: what is imported where it is there, and is not."""


def versions(modules: Iterable[str]) -> dict[str, str]:
    """Name and version of each distribution on which some modules stand, sorted.

    Args:
        modules: top-level modules that no package of this project is; one that nobody has installed is `ABSENT`.

    What a distribution requires is what it says for this machine; an extra counts where it is asked for, by the
    distribution of this project too.
    """
    found: dict[str, str] = {}
    asked: dict[str, set[str]] = {}
    todo: list[tuple[str, frozenset[str]]] = []
    own = _extras_of_own()
    for module in modules:
        names = owners().get(module, ())
        todo += [(name, own.get(name, frozenset())) for name in names]
        if not names:
            found[module] = ABSENT
    while todo:
        name, extras = todo.pop()
        if name in asked and extras <= asked[name]:
            continue
        asked.setdefault(name, set()).update(extras)
        distribution = _installed().get(name)
        found[name] = ABSENT if distribution is None else _version(distribution)
        todo += _required(name, frozenset(asked[name]))
    return dict(sorted(found.items()))


@cache
def owners() -> dict[str, tuple[str, ...]]:
    """Which distributions have each top-level module."""
    found: dict[str, set[str]] = {}
    for name, distribution in _installed().items():
        for module in _top_levels(distribution):
            found.setdefault(module, set()).add(name)
    return {module: tuple(sorted(names)) for module, names in found.items()}


def offered(groups: frozenset[str]) -> set[str]:
    """The modules that installed distributions offer as entry points under some groups."""
    return {entry.module for one in _installed().values() for entry in one.entry_points if entry.group in groups}


@cache
def own_modules() -> frozenset[str]:
    """The top-level modules of the distribution that this one is of."""
    mine = __name__.partition(".")[0]
    return frozenset({mine, *(module for name in owners().get(mine, ()) for module in _top_levels(_installed()[name]))})


def is_installed(module: str, places: Iterable[str]) -> bool:
    """Whether a top-level module at some places is part of what was installed, and not some checkout's own file."""
    folders = [
        Path(str(_installed()[name].locate_file("")))
        for name in owners().get(module, ())
        if _installed()[name].read_text("RECORD") is not None
    ]
    return any(
        _SITES & set(Path(place).parts) or any(Path(place).is_relative_to(folder) for folder in folders)
        for place in places
    )


@cache
def _installed() -> dict[str, Distribution]:
    found: dict[str, Distribution] = {}
    for distribution in distributions():
        name = canonicalize_name(_heading(distribution, "Name")[0])
        found.setdefault(name, distribution)  # the first of a name is what is imported
    return found


def _version(distribution: Distribution) -> str:
    """Its version; where it was installed from a folder, a file or a repository, with a digest of its modules.

    A version of a package registry never changes what it stands for; a folder's author may leave it as it is.
    """
    version = _heading(distribution, "Version")[0]
    if distribution.read_text("direct_url.json") is None:
        return version
    lines = (distribution.read_text("RECORD") or "").splitlines()
    modules = sorted(line for line in lines if not line.startswith("..") and ".dist-info/" not in line and "=" in line)
    return f"{version} {hashlib.blake2b(chr(10).join(modules).encode(), digest_size=16).hexdigest()}"


def _heading(distribution: Distribution, name: str) -> list[str]:
    """Values of one field. `Distribution.metadata` would parse the README as well, which takes most of the time."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    lines = text.partition("\n\n")[0].splitlines()
    return [line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:")] or [""]


def _top_levels(distribution: Distribution) -> set[str]:
    told = distribution.read_text("top_level.txt")
    if told is not None:
        return set(told.split())
    files = (line.partition(",")[0] for line in (distribution.read_text("RECORD") or "").splitlines())
    tops = {file.partition("/")[0] for file in files}
    return {top.partition(".")[0] for top in tops if not top.endswith((".dist-info", ".pth")) and top != ".."}


@cache
def _required(name: str, extras: frozenset[str]) -> tuple[tuple[str, frozenset[str]], ...]:
    distribution = _installed().get(name)
    lines = [] if distribution is None else _heading(distribution, "Requires-Dist")
    needs = list[tuple[str, frozenset[str]]]()
    for line in lines:
        if not line or ("extra ==" in line and not extras):
            continue
        plain = _UNCONDITIONAL.fullmatch(line)
        if plain is not None:  # most are, and parsing them takes most of the time
            needs.append((canonicalize_name(plain[1]), frozenset()))
            continue
        need = Requirement(line)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *sorted(extras))):
            needs.append((canonicalize_name(need.name), frozenset(need.extras)))
    return tuple(needs)


@cache
def _extras_of_own() -> dict[str, frozenset[str]]:
    mine = __name__.partition(".")[0]
    return {need: extras for name in owners().get(mine, ()) for need, extras in _required(name, frozenset())}
