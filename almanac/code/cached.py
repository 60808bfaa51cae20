"""A file with what is known of compiled modules, so that a process need not work it out for each one again.

A module is known by the bytes that Python would read of it, never by its times alone. Another Python, another digest or
a file that is not whole is read as no file: then everything is worked out, and the file is written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType
from typing import Any

from almanac.code import compiled as _compiled
from almanac.code import computed as _computed
from almanac.code.compiled import Compiled, compiled

ENTRIES_MAX = 2_000
"""Modules that the file keeps: what this process used goes before what others did."""
BYTES_MAX = 64_000_000
"""A larger file is read as no file."""

_used: dict[str, Compiled] = {}
_new: set[str] = set()


def compiled_module(spec: ModuleSpec) -> Compiled | None:
    """What is to know of a module; None of a folder without code, of machine code, and of what does not compile."""
    key = _key(spec)
    known = None if key is None else _used.get(key) or _entry(_entries().get(key))
    if known is None:
        code = _code(spec)
        if code is None:
            return None
        known = compiled(code)
        if key is None or _key(spec) != key:  # it changed meanwhile, or Python has just written its compiled file
            return known
        _new.add(key)
    if key is not None:
        _used[key] = known
    return known


def write() -> None:
    """Write the file, if something is new; it does without where it may not write."""
    if not _new:
        return
    kept = {key: _fields(one) for key, one in _used.items()}
    for key, fields in _read().items():
        if len(kept) >= ENTRIES_MAX:
            break
        kept.setdefault(key, fields)
    text = json.dumps(kept)
    path = _path()
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{_digest(text.encode())}\n{text}")
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    _new.clear()


def forget() -> None:
    """As a new process: the file is read again."""
    _used.clear()
    _new.clear()
    _entries.cache_clear()


@cache
def _entries() -> dict[str, Any]:
    return _read()


def _read() -> dict[str, Any]:
    path = _path()
    try:
        if path.stat().st_size > BYTES_MAX:
            return {}
        digest, _, text = path.read_text().partition("\n")
        found = json.loads(text) if digest == _digest(text.encode()) else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _path() -> Path:
    from almanac.settings import settings

    return settings().cache_dir / "code" / f"{_version()}.json"


@cache
def _version() -> str:
    """Of this Python, of how it compiles, and of the code that works out what the file says."""
    sources = [Path(str(place)).read_bytes() for place in (_compiled.__file__, _computed.__file__, __file__)]
    flags = f"{sys.implementation.cache_tag} {sys.version} {sys.flags.optimize} {sys.pycache_prefix}"
    return _digest(flags.encode(), *sources)


def _key(spec: ModuleSpec) -> str | None:
    """All that decides what Python runs as a module: its source, and the compiled file that may stand for it."""
    if type(spec.loader).__name__ not in ("SourceFileLoader", "SourcelessFileLoader") or not spec.origin:
        return None
    try:
        parts = [spec.name.encode(), Path(spec.origin).read_bytes()]
        beside = spec.cached
        if beside and beside != spec.origin and os.path.isfile(beside):
            seconds = int(os.stat(spec.origin).st_mtime)  # Python takes the compiled file for a source of this time
            parts += [str(seconds).encode(), Path(beside).read_bytes()]
    except OSError:
        return None
    return _digest(*parts)


def _code(spec: ModuleSpec) -> CodeType | None:
    if spec.loader is None or not hasattr(spec.loader, "get_code"):
        return None
    try:
        code = spec.loader.get_code(spec.name)
    except (ImportError, SyntaxError, ValueError):  # whoever imports it is told
        return None
    return code if isinstance(code, CodeType) else None


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _fields(one: Compiled) -> list[Any]:
    return [one.digest, one.imports, sorted(one.texts), one.has_code, sorted(one.names)]


def _entry(fields: Any) -> Compiled | None:
    """What an entry says; the file's digest has been looked at."""
    if fields is None:
        return None
    digest, imports, texts, has_code, used = fields
    told = tuple((name, level, tuple(names)) for name, level, names in imports)
    return Compiled(digest, told, frozenset(texts), has_code, frozenset(used))
