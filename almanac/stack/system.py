"""System libraries that the installed packages need and cannot bring: `python -m almanac.stack.system` in set-up."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import subprocess
import sys

from almanac.errors import AlmanacError, StackError
from almanac.plain_text import one_line

LIBRARY = "libgomp.so.1"
PACKAGE = "libgomp1"
INSTALL_SECONDS_MAX = 300


def libgomp_is_there() -> bool:
    """Whether the OpenMP run time that LightGBM is linked against can be loaded."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def ensure_libgomp() -> str:
    """Make sure of libgomp: check, or install it where this user may; returns what was found or done.

    Raises:
        StackError: it is missing and could not be installed; names the package.
    """
    if sys.platform != "linux":
        return "not Linux: LightGBM brings its OpenMP"
    if libgomp_is_there():
        return f"{LIBRARY} is there"
    missing = f"{LIBRARY}, which LightGBM needs, is missing: install {PACKAGE} (Debian, Ubuntu) or libgomp (others)"
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        raise StackError(missing)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    reason = ""
    # Its lists may be old or empty: the first try uses them as they are, the second renews them.
    for words in ((), ("update", "-q")):
        if words:
            subprocess.run([apt, *words], env=environment, capture_output=True, timeout=INSTALL_SECONDS_MAX)
        done = subprocess.run(
            [apt, "install", "-y", "-q", "--no-install-recommends", PACKAGE],
            env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX,
        )  # fmt: skip
        if done.returncode == 0 and libgomp_is_there():
            return f"{PACKAGE} was installed"
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise StackError(f"{missing} ({reason})")


if __name__ == "__main__":
    try:
        print(ensure_libgomp())
    except (AlmanacError, subprocess.TimeoutExpired) as error:
        print(f"almanac: {one_line(error)}", file=sys.stderr)
        sys.exit(StackError.exit_code)
