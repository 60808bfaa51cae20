"""Kafka's jars: named with their SHA-256 in `kafka.lock.toml`, fetched once with jgo, checked at each start.

`python -m almanac.stack.kafka_jars` resolves them anew and rewrites the lock file.
"""

from __future__ import annotations

import fcntl
import hashlib
import sys
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from almanac.errors import StackError

LOCK_FILE = Path(__file__).with_name("kafka.lock.toml")
ROOTS = ("org.apache.kafka:kafka_2.13:4.1.1", "org.slf4j:slf4j-simple:1.7.36")
DOWNLOADS_AT_ONCE = 6
ATTEMPTS_MAX = 3
ANSWER_SECONDS_MAX = 30


@dataclass(frozen=True, kw_only=True)
class Jar:
    """One locked jar: its Maven coordinate and hash."""

    group: str
    artifact: str
    version: str
    sha256: str

    def path(self, repository: Path) -> Path:
        """Where it lies in a Maven repository folder."""
        name = f"{self.artifact}-{self.version}.jar"
        return repository.joinpath(*self.group.split("."), self.artifact, self.version, name)

    def intact(self, repository: Path) -> bool:
        """Whether it is there with the locked content."""
        path = self.path(repository)
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256


def locked() -> list[Jar]:
    """The jars of the lock file, in class path order."""
    found = tomllib.loads(LOCK_FILE.read_text())["dependencies"]
    return [
        Jar(group=one["groupId"], artifact=one["artifactId"], version=one["version"], sha256=one["sha256"])
        for one in found
    ]


def _context(repository: Path) -> Any:
    from jgo.maven import MavenContext

    return MavenContext(repo_cache=repository, timeout=ANSWER_SECONDS_MAX)


def _fetch(context: Any, jar: Jar) -> None:
    from requests import RequestException

    repository = context.repo_cache
    reason = "no attempt"
    for _ in range(ATTEMPTS_MAX):
        jar.path(repository).unlink(missing_ok=True)  # a download that was cut short, or another content
        try:
            context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
        except (RequestException, RuntimeError, OSError) as error:
            reason = type(error).__name__
            continue
        if jar.intact(repository):
            return
        reason = "its SHA-256 is not the locked one"
    jar.path(repository).unlink(missing_ok=True)
    raise StackError(
        f"{jar.group}:{jar.artifact}:{jar.version} could not be fetched from Maven Central ({reason}): "
        "check the network and try again, or set ALMANAC_KAFKA_BOOTSTRAP"
    )


def class_path(cache_dir: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """Make sure of every jar and return Java's class path.

    Args:
        cache_dir: jars are kept in `maven/` below it, for all state directories.
        progress: told (jars done, jars to fetch) while fetching.

    Raises:
        StackError: a jar cannot be fetched, or is not the locked one.
    """
    repository = cache_dir.resolve() / "maven"
    repository.mkdir(parents=True, exist_ok=True)
    jars = locked()
    with (repository / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process fetches, the others find the jars there
        missing = [jar for jar in jars if not jar.intact(repository)]
        if missing:
            context = _context(repository)
            with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
                for done, _ in enumerate(pool.map(lambda jar: _fetch(context, jar), missing), 1):
                    if progress:
                        progress(done, len(missing))
    return ":".join(str(jar.path(repository)) for jar in jars)


def write_lock(cache_dir: Path) -> int:
    """Resolve `ROOTS` and everything they need, and write the lock file; returns the number of jars."""
    from jgo.env import LockFile

    context = _context(cache_dir.resolve() / "maven")
    inputs, others = context.resolver.resolve([context.create_dependency(root) for root in ROOTS])
    wanted = [*inputs, *(one for one in others if one.scope in ("compile", "runtime"))]
    LockFile.from_resolved_dependencies(wanted, environment_name="almanac-kafka").save(LOCK_FILE)
    return len(wanted)


if __name__ == "__main__":
    from almanac.settings import settings

    sys.stdout.write(f"{write_lock(settings().cache_dir)} jars locked in {LOCK_FILE.name}\n")
