"""Where the files come from: packages that are installed here, and source packages that pip gets by their hashes."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MEMBER_BYTES_MAX = 64 << 20
"""Of one file within a package."""
DOWNLOAD_SECONDS_MAX = 300.0
SHOWN_CHARACTERS_MAX = 300


class Unreachable(Exception):
    """The package index did not give a package; says what pip said."""


@dataclass(frozen=True)
class Package:
    """A package that has test data.

    Attributes:
        sha256: of its source package; empty of one that is installed here, whose files the lock's hash has proved.
    """

    name: str
    version: str
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def installed(name: str) -> Package:
    """A package as it is installed here."""
    return Package(name, importlib.metadata.version(name))


def fetched(packages: Sequence[Package], folder: Path) -> None:
    """Get source packages that are not there yet, each by its hash.

    Raises:
        Unreachable: pip could not get one.
    """
    lacking = [one for one in packages if one.sha256 and not _archive(one, folder).is_file()]
    if not lacking:
        return
    folder.mkdir(parents=True, exist_ok=True)
    asked = folder / "packages.txt"
    asked.write_text("".join(f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in lacking))
    words = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    words += ["--no-binary", ":all:", "--require-hashes", "--requirement", str(asked), "--dest", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words], capture_output=True, text=True, timeout=DOWNLOAD_SECONDS_MAX, check=False
    )
    if done.returncode:
        said = " ".join(done.stderr.split())[-SHOWN_CHARACTERS_MAX:]
        raise Unreachable(f"pip could not get {', '.join(map(str, lacking))}: {said}")


def content(package: Package, member: str, folder: Path) -> bytes:
    """One file of a package.

    Args:
        member: its path within the source package, or below the installed packages.

    Raises:
        FileNotFoundError: the package has no such file, or one that is too large.
    """
    if not package.sha256:
        path = Path(str(importlib.metadata.distribution(package.name).locate_file(member)))
        return path.read_bytes()
    name = f"{_stem(package)}/{member}"
    with tarfile.open(_archive(package, folder), "r:gz") as archive:
        entry = next((one for one in archive if one.name == name and one.isfile()), None)
        if entry is None or entry.size > MEMBER_BYTES_MAX:
            raise FileNotFoundError(f"{package} has no file {member} of at most {MEMBER_BYTES_MAX:,} bytes")
        opened = archive.extractfile(entry)
        assert opened is not None
        return opened.read()


def _stem(package: Package) -> str:
    return f"{package.name}-{package.version}"


def _archive(package: Package, folder: Path) -> Path:
    return folder / f"{_stem(package)}.tar.gz"
