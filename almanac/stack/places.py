"""Where the embedded stack keeps its files, all below one state directory."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from almanac.errors import StackError
from almanac.settings import DATA_FOLDERS, ENDPOINTS_FILE, WORKING_PREFIX
from almanac.stack.server import SECRETS_FILE

# sun_path of a unix socket, less what supervisord appends while it binds (a dot and a pid).
SOCKET_PATH_BYTES_MAX = 95
STATE_FILE = "state.json"
PROGRAM_FOLDERS = ("postgres", "redis", "kafka", "airflow", "run")
PURGED = (
    *PROGRAM_FOLDERS,
    *DATA_FOLDERS,
    "logs",
    SECRETS_FILE,
    ENDPOINTS_FILE,
    "ports.json",
    STATE_FILE,
    "up.lock",
)


@dataclass(frozen=True)
class Places:
    """Paths below a state directory; the directory is absolute and without links."""

    state_dir: Path

    @classmethod
    def of(cls, state_dir: Path) -> Places:
        """The places of a state directory, which need not exist yet."""
        return cls(state_dir.expanduser().resolve())

    @property
    def run(self) -> Path:
        """Files that matter only while the stack is up; programs run in folders below it."""
        return self.state_dir / "run"

    @property
    def logs(self) -> Path:
        """One log a program."""
        return self.state_dir / "logs"

    @property
    def lock(self) -> Path:
        """Held by `almanac up` while it works; holds its pid."""
        return self.state_dir / "up.lock"

    @property
    def endpoints(self) -> Path:
        """What the settings of every process read (mode 0600)."""
        return self.state_dir / ENDPOINTS_FILE

    @property
    def ports(self) -> Path:
        """The ports chosen last, to be chosen again."""
        return self.state_dir / "ports.json"

    @property
    def state(self) -> Path:
        """The version of this directory."""
        return self.state_dir / STATE_FILE

    @property
    def programs(self) -> Path:
        """Command, folder and environment of each program (mode 0600)."""
        return self.run / "programs.json"

    @property
    def overrides(self) -> Path:
        """Settings changed for single programs by `almanac restart --set`."""
        return self.run / "overrides.json"

    @property
    def session(self) -> Path:
        """The process manager's session, to find what is left of it."""
        return self.run / "session.json"

    @property
    def configuration(self) -> Path:
        """The process manager's configuration (mode 0600)."""
        return self.run / "supervisord.conf"

    @property
    def socket(self) -> Path:
        """The process manager's socket; in the system's temporary folder if the state directory's path is long."""
        path = self.run / "supervisor.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
            return path
        name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"almanac-{os.geteuid()}-{name}" / "supervisor.sock"

    @property
    def temporary(self) -> Path | None:
        """Where programs put temporary files, removed by `down`; None if a socket there would have too long a path."""
        path = self.run / "tmp"
        return path if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX // 2 else None

    def log(self, program: str) -> Path:
        """A program's log."""
        return self.logs / f"{program}.log"

    def folder(self, program: str) -> Path:
        """The working directory of a program of ours."""
        return self.run / program

    def make(self) -> None:
        """Make the folders.

        Raises:
            StackError: the state directory cannot be used.
        """
        try:
            for folder in (self.state_dir, self.run, self.logs, self.temporary):
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
            if self.socket.parent != self.run:
                self.socket.parent.mkdir(mode=0o700, exist_ok=True)
                status = self.socket.parent.lstat()
                if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                    raise StackError(f"{self.socket.parent} belongs to somebody else: shorten ALMANAC_STATE_DIR")
        except OSError as error:
            raise StackError(
                f"{self.state_dir} cannot be used ({error.strerror}): set ALMANAC_STATE_DIR to a folder of yours"
            ) from None

    def clear_run(self) -> None:
        """Remove sockets, pids and addresses; data stays."""
        self.endpoints.unlink(missing_ok=True)
        shutil.rmtree(self.run, ignore_errors=True)
        if self.socket.parent != self.run:
            shutil.rmtree(self.socket.parent, ignore_errors=True)

    def purge(self) -> None:
        """Remove everything that Almanac keeps in the state directory, and the directory if it is empty then.

        Raises:
            StackError: something could not be removed.
        """
        drafts = [path for name in PURGED for path in self.state_dir.glob(f".{name}.*")]  # of writers that were killed
        left = [*drafts, *self.state_dir.glob(f"{WORKING_PREFIX}*")]
        for path in (*(self.state_dir / name for name in PURGED), *left):
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise StackError(f"{path} could not be removed ({error.strerror}): remove it by hand") from None
        if self.state_dir.is_dir() and not any(self.state_dir.iterdir()):
            self.state_dir.rmdir()
