"""From some modules to all the code that they can run: by their imports, in turn.

Followed are the modules of this project, and others that are no installed distribution, such as a user's own. Of what
is installed, and of Python, the version counts. An import inside a function counts as one at the top. So does a module
that is named by a text, as `import_module` and `feature_store.yaml` name them, and a file beside the code that is named
by a text. What is imported for type checkers alone does not run, and is not followed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from almanac.code import cached
from almanac.code.cached import compiled_module
from almanac.code.compiled import Compiled
from almanac.code.computed import ENTRY_POINTS, OWN_PLACES, is_listed, prefixes, reads_packages
from almanac.code.libraries import is_installed, offered, own_modules, versions
from almanac.errors import UsageError

INITIAL = "__init__.py"
FILES_MAX = 10_000
"""Files below one package that are looked through for those that its code names."""
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_NAMING = re.compile(r"\.*[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*\.?")
"""A text that may name a module, one relative to its package, or with a point at the end all modules of a package."""
_FILE = re.compile(r"(?:[\w. -]{1,100}/){0,8}[\w. -]{0,100}\.[A-Za-z0-9_]{1,20}")
_FOLDER = re.compile(r"[A-Za-z_][\w-]{0,60}")
_NEVER_RUN = (".pyc", ".pyi")
READ_BYTES_MAX = 64_000_000
"""Of a larger file that code names, size and time of change count, for a process must not wait for reading it."""
NAMES_BYTES_MAX = 1_000_000
"""A larger file is no settings, and is not looked through for names of modules."""
ANCESTORS_MAX = 3
"""Folders above a module in which files count that it names from its own place, such as `data/rates.csv`."""


@dataclass(frozen=True)
class Code:
    """The code that some modules can run.

    Attributes:
        modules: digest of each module, by name.
        files: digest of each file that code names, by its place below its package.
        libraries: version of each distribution that is used, by name.
    """

    modules: dict[str, str]
    files: dict[str, str]
    libraries: dict[str, str]

    @cached_property
    def digest(self) -> str:
        """32 hex digits; equal for equal code, wherever it lies."""
        python = f"{sys.implementation.name} {sys.version.split()[0]}"
        text = json.dumps([python, self.modules, self.files, self.libraries], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class _Module:
    """One module that is followed: what its code is, and the files that it names."""

    name: str
    is_package: bool
    code: Compiled
    files: dict[str, str]
    named: frozenset[str]
    """Dotted names in texts and files, of which some name modules."""


@cache
def code_of(roots: tuple[str, ...]) -> Code:
    """The code that some modules can run, their own included: as it is when a process first asks.

    Args:
        roots: names of modules, or paths of files that end in `.py`.

    Raises:
        UsageError: a root is no module.
    """
    found, foreign = _followed(roots)
    return Code(
        modules={name: module.code.digest for name, module in sorted(found.items())},
        files={place: digest for _, module in sorted(found.items()) for place, digest in module.files.items()},
        libraries=versions(sorted(foreign)),
    )


@cache
def own_code_of(roots: tuple[str, ...]) -> Code:
    """As `code_of`, without modules that only declare: those that define no function and no class, nor import one.

    What such a module declares are values, which whoever reads them digests.
    """
    found, foreign = _followed(roots)
    able = tuple(name for name, module in found.items() if module.code.has_code)
    inner = code_of(able)
    return Code(inner.modules, inner.files, {**versions(sorted(foreign)), **inner.libraries})


def _followed(roots: tuple[str, ...]) -> tuple[dict[str, _Module], set[str]]:
    """The modules that are followed, by name, and the top-level modules that are not."""
    found: dict[str, _Module] = {}
    foreign: set[str] = set()
    todo = list(roots)
    for root in roots:
        if _module(root) is None:
            raise UsageError(f"{root} is no module of Python code: correct its name")
    while todo:
        name = todo.pop()
        if name in found:
            continue
        module = _module(name)
        if module is not None:
            found[name] = module
            todo += _next(module)
            continue
        top = name.partition(".")[0]
        if _is_foreign(top):
            foreign.add(top)
    cached.write()
    return found, foreign


def _next(module: _Module) -> Iterator[str]:
    """What a module leads to: what it imports or names, and the packages that all of that is in."""
    for name, level, names in module.code.imports:
        try:
            base = name if not level else importlib.util.resolve_name("." * level + name, _package_of(module))
        except ImportError:
            continue
        yield from _with_packages(base)
        outer = _module(base) if "*" in names else None
        for one in (*names, *(text for text in (outer.code.texts if outer else ()) if text.isidentifier())):
            if _module(f"{base}.{one}") is not None:
                yield f"{base}.{one}"
    for text in module.named | prefixes(module.code, _package_of(module)):
        yield from _named_by(text, module)
    yield from _with_packages(module.name)


def _named_by(text: str, module: _Module) -> Iterator[str]:
    """The modules that a text names: a module, something in one, or by a point at its end all modules of a package."""
    if text.startswith("."):
        try:
            text = importlib.util.resolve_name(text, _package_of(module))
        except (ImportError, ValueError):
            return
    parts = text.rstrip(".").split(".")
    if _module(parts[0]) is None:
        return
    length = next(size for size in range(len(parts), 0, -1) if _module(".".join(parts[:size])) is not None)
    name = ".".join(parts[:length])
    yield from _with_packages(name)
    if text.endswith(".") and length == len(parts):
        yield from _below(name)


def _below(package: str) -> Iterator[str]:
    """Every module in a package, and in those within it."""
    spec = _spec(package)
    for one in pkgutil.iter_modules(_folders(spec)):
        yield f"{package}.{one.name}"
        if one.ispkg:
            yield from _below(f"{package}.{one.name}")


def _package_of(module: _Module) -> str:
    return module.name if module.is_package else module.name.rpartition(".")[0]


def _with_packages(name: str) -> Iterator[str]:
    """A module, and the packages that it is in: importing it runs them."""
    if name.endswith(".py"):
        return
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])


@cache
def _module(name: str) -> _Module | None:
    """One module, by its name or its file; None of what is not followed."""
    spec = _of_file(name) if name.endswith(".py") else _spec(name)
    if spec is None or not _is_followed(name.partition(".")[0], spec):
        return None
    known = compiled_module(spec) or Compiled(_digest_of(Path(str(spec.origin))), (), frozenset(), True)
    folders = _folders(spec)
    files, named = _files(spec, folders, known)
    by_name = any(imported.partition(".")[0] == "importlib" for imported, _, _ in known.imports)
    texts = {text.partition(":")[0] for text in known.texts}  # a class may be named as `package.module:Class`
    named |= {text for text in texts if (by_name or "." in text[:-1]) and _NAMING.fullmatch(text)}
    named |= offered(frozenset(known.texts)) if known.names & ENTRY_POINTS else set()
    return _Module(name, bool(folders), known, files, frozenset(named))


def _of_file(path: str) -> ModuleSpec | None:
    return importlib.util.spec_from_file_location(Path(path).stem, path) if Path(path).is_file() else None


@cache
def _spec(name: str) -> ModuleSpec | None:
    """Where a module is; none is imported for that."""
    package, _, _ = name.rpartition(".")
    if not package:
        try:
            return importlib.util.find_spec(name)
        except (ImportError, ValueError):  # of one that was made by hand, such as __main__
            return None
    folders = _folders(_spec(package))
    try:
        return PathFinder.find_spec(name, folders) if folders else None
    except KeyError:  # a folder without `__init__.py`: Python looks up the package around it, which nobody has imported
        spec = ModuleSpec(name, None, is_package=True)
        places = [os.path.join(folder, name.removeprefix(f"{package}.")) for folder in folders]
        spec.submodule_search_locations = [place for place in places if os.path.isdir(place)]
        return spec


def _folders(spec: ModuleSpec | None) -> list[str]:
    """The folders of a package; none of what is no package."""
    return list((spec.submodule_search_locations if spec is not None else None) or ())


def _is_followed(top: str, spec: ModuleSpec) -> bool:
    if top in sys.stdlib_module_names:
        return False
    if top in own_modules():
        return True
    places = [spec.origin] if spec.origin else _folders(spec)
    return not is_installed(top, places)


def _is_foreign(top: str) -> bool:
    return top not in sys.stdlib_module_names and top not in own_modules() and top != "__main__"


def _files(spec: ModuleSpec, folders: list[str], code: Compiled) -> tuple[dict[str, str], set[str]]:
    """Files that the module's code names or may list, with digests; and the dotted names in them.

    Looked through are its own package and those that it imports or names; for a name with an end also the folders
    around the module, if it asks where it is.
    """
    if not spec.origin or not os.path.isfile(spec.origin):
        return {}, set()
    own = spec.name.partition(".")[0]
    tops = _packages_looked_through(own, code)
    found = {f"{own}/{place}": path for place, path in _around(spec.origin, code, tops[own])}
    for top, roots in tops.items():
        known = _beside(roots)
        names = {os.path.basename(text) for text in code.texts} | {name for name in known if is_listed(code, name)}
        names.discard(INITIAL)  # it counts as a module
        found.update({f"{top}/{place}": path for name in names for path, place in known.get(name, ())})
        found.update({f"{top}/{place}": path for path, place in _absent_modules(code, known)})
    files, named = dict[str, str](), set[str]()
    for place, path in sorted(found.items()):
        files[place] = _digest_of(path)
        if path.stat().st_size <= NAMES_BYTES_MAX:
            named |= set(_DOTTED.findall(path.read_text(errors="replace")))
    return files, named


def _packages_looked_through(own: str, code: Compiled) -> dict[str, tuple[Path, ...]]:
    """Top-level packages with their folders: a module's own, and where it finds files in packages, others it says."""
    said = {name.partition(".")[0] for name, level, _ in code.imports if name and not level}
    if reads_packages(code):
        said |= {text.partition(".")[0] for text in code.texts if _NAMING.fullmatch(text)}
    elif not code.names & OWN_PLACES:
        said = set()
    others = sorted(one for one in said - {own, ""} if one not in sys.stdlib_module_names)
    found = {own: tuple(Path(place) for place in _folders(_spec(own)))}
    for one in others:
        spec = _spec(one)
        if spec is not None and _is_followed(one, spec):
            found[one] = tuple(Path(place) for place in _folders(spec))
    return found


def _absent_modules(code: Compiled, known: dict[str, list[tuple[Path, str]]]) -> Iterator[tuple[Path, str]]:
    """Files of modules that are imported and nowhere on the path: whoever extends the path may mean these."""
    tops = {name.partition(".")[0] for name, level, _ in code.imports if name and not level}
    absent = {top for top in tops if (f"{top}.py" in known or INITIAL in known) and _spec(top) is None}
    for top in absent:
        yield from known.get(f"{top}.py", ())
        for initial, _ in known.get(INITIAL, ()):
            if initial.parent.name == top:
                yield from (one for ones in known.values() for one in ones if one[0].is_relative_to(initial.parent))


def _around(origin: str, code: Compiled, roots: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Files that a module names from its own place and that its package has not, each with its place from there."""
    folder = Path(origin).parent
    ancestors = [folder, *folder.parents][: ANCESTORS_MAX + 1] if code.names & OWN_PLACES else [] if roots else [folder]
    names = [text for text in code.texts if _FILE.fullmatch(text)] if ancestors else []
    between = ["", *(text for text in code.texts if _FOLDER.fullmatch(text))] if names else []
    for ancestor in ancestors:
        for inside in between:
            if inside and not os.path.isdir(ancestor / inside):
                continue
            for name in names:
                path = Path(os.path.normpath(ancestor / inside / name))
                if os.path.isfile(path) and not any(path.is_relative_to(root) for root in roots):
                    yield Path(os.path.relpath(path, folder)).as_posix(), path


@cache
def _beside(roots: tuple[Path, ...]) -> dict[str, list[tuple[Path, str]]]:
    """The files of some packages, and their places below these, by their names."""
    found: dict[str, list[tuple[Path, str]]] = {}
    count = 0
    for root in roots:
        for folder, inside, names in os.walk(root):
            inside[:] = sorted(name for name in inside if not name.startswith((".", "__pycache__")))
            count += len(names)
            if count > FILES_MAX:
                return found
            for name in sorted(names):
                if not name.endswith(_NEVER_RUN):
                    path = Path(folder, name)
                    found.setdefault(name, []).append((path, path.relative_to(root).as_posix()))
    return found


def _digest_of(path: Path) -> str:
    """Of a file's bytes; of a larger one by what the file system says of it, so that nobody waits for it."""
    if not path.is_file():
        return ""
    stat = path.stat()
    if stat.st_size > READ_BYTES_MAX:
        return f"{stat.st_size} bytes of {stat.st_mtime_ns}"
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
