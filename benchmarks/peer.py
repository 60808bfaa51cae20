"""Peers: programs that do the same work without Almanac, each in an environment of its own.

A peer is a script of `benchmarks/peers/`, run by the Python of a virtual
environment below the cache directory that holds exactly what its committed,
hash-locked requirements name; it is installed at the first use. Peer and
benchmark speak JSON lines: one request, one answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from almanac.errors import StackError
from almanac.settings import settings
from almanac.stack.servers import stop
from benchmarks.measuring import on_core, say

FOLDER = Path(__file__).resolve().parent / "peers"
INSTALL_SECONDS_MAX = 900
MARK = ".locked"  # names the lock that an environment was made from


def environment_of(name: str, folder_of_locks: Path = FOLDER) -> Path:
    """The Python of a peer's environment, installed from `peers/<name>.lock.txt` where that was not done yet.

    Args:
        name: of the lock and of the environment.
        folder_of_locks: where the lock is.

    Raises:
        StackError: it could not be installed; says the last line of why.
    """
    lock = folder_of_locks / f"{name}.lock.txt"
    folder = settings().cache_dir / "peers" / name
    python = folder / "bin" / "python"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    mark = folder / MARK
    if mark.exists() and mark.read_text() == wanted and python.exists():
        return python
    say(f"installing the peer {name} into {folder} (once; hashes checked)")
    uv = str(Path(sys.executable).parent / "uv")
    for command in (
        [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)],
        [uv, "pip", "sync", "--quiet", "--python", str(python), "--require-hashes", str(lock)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise StackError(f"the peer {name} cannot be installed ({reason}): retry, or run with --no-peers")
    mark.write_text(wanted)
    return python


class Peer:
    """A running peer."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
        self._process, self._name, self._log = process, name, log

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            StackError: the peer ended or failed; quotes the last line of its log.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101  both are pipes
        assert stdout is not None  # noqa: S101
        line = b""
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            lines = self._log.read_text(errors="replace").strip().splitlines() or ["its log is empty"]
            raise StackError(f"the peer {self._name} ended ({lines[-1]}): see {self._log}, or run with --no-peers")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def running_peer(environment: str, script: str, world: Mapping[str, Any], core: int, folder: Path) -> Iterator[Peer]:
    """Start a peer on a core; its first request is the world it works in. Ended by its pid afterwards.

    Args:
        environment: name of its lock.
        script: file name below `benchmarks/peers/`.
        world: what it needs to know; JSON.
        folder: for its log and its own files.
    """
    python = environment_of(environment)
    log = folder / f"{script}.log"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ALMANAC_", "PYTHON"))}
    with log.open("ab") as output, on_core(core):
        process = subprocess.Popen(
            [str(python), str(FOLDER / script)], cwd=folder, env={**kept, "FEAST_USAGE": "False"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
        )  # fmt: skip
    try:
        peer = Peer(process, script.removesuffix(".py"), log)
        peer.ask(**world)
        yield peer
    finally:
        stop(process, "TERM")
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
