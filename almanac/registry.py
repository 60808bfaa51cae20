"""The model registry: a folder a version, and aliases beside them.

    <models_dir>/<name>/v0003/model.onnx           scored by batch, stream and lookup
                              model-<output>.txt   LightGBM's own text, for people and tools
                              golden.parquet       rows with what LightGBM answered on them
                              manifest.json        hashes, inputs, outputs, windows, metrics
    <models_dir>/<name>/aliases.json               {"champion": 3}

A version is written to a temporary folder and renamed: it is there whole or not
at all, and never changes. Nothing here can run code: files are bytes with a
hash, the manifest is JSON of a checked type.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from almanac.clock import need_utc
from almanac.errors import ModelError, UnknownModel, UsageError
from almanac.manifest import MANIFEST_FORMAT, Description, Manifest

VERSIONS_MAX = 9_999
FILES_MAX = 100
FILE_BYTES_MAX = 512 * 1024 * 1024
MANIFEST_BYTES_MAX = 4 * 1024 * 1024
MODEL_FILE = "model.onnx"
GOLDEN_FILE = "golden.parquet"
MANIFEST_FILE = "manifest.json"
ALIASES_FILE = "aliases.json"

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FOLDER = re.compile(r"v(\d{4})")


@dataclass(frozen=True)
class ModelVersion:
    """One registered version. Its files never change."""

    name: str
    version: int
    path: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """`bikes-v3`: what predictions, overlays and generations carry as `model`."""
        return f"{self.name}-v{self.version}"

    @property
    def hash(self) -> str:
        """SHA-256 of the ONNX file, hex, as registered."""
        return self.manifest.files[MODEL_FILE]

    def read(self, file: str) -> bytes:
        """The bytes of one file of this version, checked against its hash.

        Raises:
            ModelError: the file is gone, too large, or not what was registered.
        """
        expected = self.manifest.files.get(file)
        if expected is None:
            raise ModelError(f"model {self.id} has no file {file} (it has {', '.join(sorted(self.manifest.files))})")
        data = _read_limited(self.path / file, FILE_BYTES_MAX, self.id)
        if hashlib.sha256(data).hexdigest() != expected:
            raise ModelError(
                f"model {self.id}: {file} was changed after it was registered: "
                f"restore {self.path / file} or train a new version"
            )
        return data

    def verify(self) -> None:
        """Check every file against its hash.

        Raises:
            ModelError: a file is gone or was changed.
        """
        for file in sorted(self.manifest.files):
            self.read(file)


class Registry:
    """The models below one folder, which need not exist yet.

    Args:
        root: `settings.models_dir`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> tuple[str, ...]:
        """Names of all models, sorted."""
        if not self.root.is_dir():
            return ()
        folders = (entry.name for entry in self.root.iterdir() if entry.is_dir())
        return tuple(sorted(folder for folder in folders if _NAME.fullmatch(folder)))

    def versions(self, name: str) -> tuple[ModelVersion, ...]:
        """All versions of a model, oldest first; hashes are not checked here.

        Raises:
            UnknownModel: there is no such model.
            ModelError: a manifest cannot be read.
        """
        numbers = self._numbers(name)
        if not numbers:
            raise UnknownModel(
                f"the registry has no model {name!r} (it has {_listed(self.names())}): "
                f"train it with `almanac train {name}`"
            )
        return tuple(self._load(name, number) for number in numbers)

    def aliases(self, name: str) -> dict[str, int]:
        """Aliases of a model and the versions that they name; empty if it has none.

        Raises:
            ModelError: the aliases' file cannot be read.
        """
        path = self._folder(name) / ALIASES_FILE
        if not path.exists():
            return {}
        data = _read_limited(path, MANIFEST_BYTES_MAX, name)
        try:
            return msgspec.json.decode(data, type=dict[str, int])
        except msgspec.DecodeError as error:
            raise ModelError(
                f"{path} is not a JSON object of alias to version ({error}): "
                f"remove it and run `almanac models {name} --alias champion=<version>`"
            ) from None

    def resolve(self, reference: str) -> ModelVersion:
        """The version that `bikes@champion` or `bikes@3` names, with all of its hashes checked.

        Raises:
            UnknownModel: no such model, alias or version; says which there are.
            ModelError: a file was changed, or the manifest cannot be read.
        """
        found = self._load(*self._named(reference))
        found.verify()
        return found

    def identify(self, reference: str) -> str:
        """Id, such as `bikes-v3`, of the version that `bikes@champion` names; its files are not looked at.

        Raises:
            UnknownModel: no such model, alias or version; says which there are.
            ModelError: the aliases' file cannot be read.
        """
        name, version = self._named(reference)
        return f"{name}-v{version}"

    def version(self, model_id: str) -> ModelVersion:
        """The version with an id such as `bikes-v3`, with all of its hashes checked.

        Raises:
            UnknownModel: no such model or version, or this is no version's id.
            ModelError: a file was changed, or the manifest cannot be read.
        """
        name, _, number = model_id.rpartition("-v")
        if not name or not number.isascii() or not number.isdigit():
            raise UnknownModel(f"{model_id!r} is not the id of a registered version, such as bikes-v3")
        return self.resolve(f"{name}@{number}")

    def _named(self, reference: str) -> tuple[str, int]:
        """Model and version that a reference names."""
        name, separator, wanted = reference.partition("@")
        if not separator or not wanted:
            raise UnknownModel(f"{reference!r} does not name a model: give <name>@<alias> or <name>@<version>")
        numbers = self._numbers(name)
        if not numbers:
            self.versions(name)  # says what there is
        version = self._number_of(name, wanted)
        if version not in numbers:
            aliases = self.aliases(name)
            raise UnknownModel(
                f"model {name} has no version or alias {wanted!r} "
                f"(versions: {_listed(numbers)}; aliases: {_listed(aliases)}): see `almanac models {name}`"
            )
        return name, version

    def register(
        self, name: str, files: Mapping[str, bytes], description: Description, *, now: datetime
    ) -> ModelVersion:
        """Write a new version, whole or not at all; its number is one above the highest.

        Args:
            name: the model.
            files: file name to bytes, `model.onnx` among them.
            description: for the manifest.
            now: when the version was made, aware.

        Raises:
            UsageError: a name, or the number or size of files or versions, is not acceptable.
        """
        _check_files(files)
        folder = self._folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            version = max(self._numbers(name), default=0) + 1
            if version > VERSIONS_MAX:
                raise UsageError(f"model {name} has {VERSIONS_MAX} versions, the most there can be: use another name")
            manifest = Manifest(
                **msgspec.structs.asdict(description),
                format=MANIFEST_FORMAT,
                name=name,
                version=version,
                created_at=need_utc(now),
                files={file: hashlib.sha256(data).hexdigest() for file, data in sorted(files.items())},
            )
            text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
            _write_folder(folder / _folder_name(version), {**files, MANIFEST_FILE: text})
        return self._load(name, version)

    def set_alias(self, name: str, alias: str, version: int, *, instead_of: int | None = None) -> bool:
        """Let an alias name a version from now on; readers see the old or the new one.

        Args:
            instead_of: only if the alias names this version, 0 if none; None whatever it names.

        Returns:
            Whether it was done: not where the alias names another version than `instead_of`.

        Raises:
            UnknownModel: there is no such version.
            UsageError: the alias is not a word that can be told from a version.
        """
        if not _ALIAS.fullmatch(alias):
            raise UsageError(f"alias {alias!r} must match {_ALIAS.pattern}: choose another word")
        self.resolve(f"{name}@{version}")
        folder = self._folder(name)
        with _locked(folder):
            aliases = self.aliases(name)
            if instead_of is not None and aliases.get(alias, 0) != instead_of:
                return False
            text = msgspec.json.format(msgspec.json.encode({**aliases, alias: version}), indent=2)
            _replace(folder / ALIASES_FILE, text)
        return True

    def _folder(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise UnknownModel(f"{name!r} cannot be a model's name: it must match {_NAME.pattern}")
        return self.root / name

    def _numbers(self, name: str) -> list[int]:
        folder = self._folder(name)
        if not folder.is_dir():
            return []
        matches = (_FOLDER.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in matches if match)

    def _number_of(self, name: str, wanted: str) -> int:
        """The version that an alias or a number names; 0, which is never a version, if none."""
        digits = wanted.removeprefix("v")
        if digits.isascii() and digits.isdigit() and len(digits) <= len(str(VERSIONS_MAX)):
            return int(digits)
        return self.aliases(name).get(wanted, 0)

    def _load(self, name: str, version: int) -> ModelVersion:
        path = self._folder(name) / _folder_name(version)
        data = _read_limited(path / MANIFEST_FILE, MANIFEST_BYTES_MAX, f"{name}-v{version}")
        try:
            manifest = msgspec.json.decode(data, type=Manifest)
        except msgspec.DecodeError as error:
            raise ModelError(
                f"{path / MANIFEST_FILE} is not a model's manifest ({error}): restore it or train again"
            ) from None
        if (manifest.format, manifest.name, manifest.version) != (MANIFEST_FORMAT, name, version):
            raise ModelError(
                f"{path / MANIFEST_FILE} says it is {manifest.name}-v{manifest.version} in format {manifest.format}, "
                f"expected {name}-v{version} in format {MANIFEST_FORMAT}: restore it or train again"
            )
        if MODEL_FILE not in manifest.files or not all(_FILE.fullmatch(file) for file in manifest.files):
            raise ModelError(
                f"{path / MANIFEST_FILE} lists no {MODEL_FILE}, or files elsewhere: restore it or train again"
            )
        return ModelVersion(name, version, path, manifest)


def _listed(items: Mapping[str, int] | tuple[str, ...] | list[int]) -> str:
    return ", ".join(str(item) for item in items) or "none"


def _folder_name(version: int) -> str:
    return f"v{version:04d}"


def _check_files(files: Mapping[str, bytes]) -> None:
    if MODEL_FILE not in files or len(files) > FILES_MAX:
        raise UsageError(f"a version has {MODEL_FILE} and at most {FILES_MAX} files: got {len(files)} files")
    for file, data in files.items():
        if not _FILE.fullmatch(file) or file == MANIFEST_FILE:
            raise UsageError(f"{file!r} cannot be a file of a version: it must match {_FILE.pattern}")
        if len(data) > FILE_BYTES_MAX:
            raise UsageError(
                f"{file} has {len(data):,} bytes, more than {FILE_BYTES_MAX:,}: train fewer or smaller trees"
            )


def _read_limited(path: Path, bytes_max: int, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise ModelError(f"model {what}: {path} cannot be read ({error.strerror}): restore it or train again") from None
    if len(data) > bytes_max:
        raise ModelError(f"model {what}: {path} has more than {bytes_max:,} bytes: restore it or train again")
    return data


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time for a model; readers need no lock."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write files to a temporary folder beside `target`, flush, and rename."""
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        for file, data in files.items():
            _write(temporary / file, data)
        temporary.chmod(0o755)
        temporary.rename(target)
        _flush_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _replace(path: Path, data: bytes) -> None:
    """Replace a file atomically."""
    temporary = path.with_name(f".{path.name}.new")
    _write(temporary, data)
    temporary.replace(path)
    _flush_folder(path.parent)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
