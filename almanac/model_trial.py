"""A model of somebody else's is opened and asked first in a process of its own, with limits of memory and time."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from almanac.errors import ModelError

MEMORY_BYTES_MAX = 4 << 30
"""Address space of the process that tries a model, with ONNX Runtime itself."""
CPU_SECONDS_MAX = 120
WALL_SECONDS_MAX = 240.0
REASON_CHARS_MAX = 300
REFUSED = 3
_PROGRAM = "from almanac.model_trial import in_child; in_child()"


def need_harmless(model_id: str, data: bytes) -> None:
    """Open a graph and ask it for as many rows as it will ever get at once, and for one.

    Args:
        data: in our own form, after `check_graph`.

    Raises:
        ModelError: ONNX Runtime refuses it, ends over it, or needs more memory or time than the limits.
    """
    with tempfile.TemporaryDirectory(prefix="almanac-trial-") as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(data)
        file.chmod(0o400)
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {_PROGRAM}"],
                cwd=folder, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
                timeout=WALL_SECONDS_MAX, check=False,
                env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "ALMANAC_TRIAL_MODEL": str(file)},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"model {model_id} was tried, and did not answer within {WALL_SECONDS_MAX:.0f} s: give a smaller model"
            ) from None
    if done.returncode == 0:
        return
    if done.returncode == REFUSED:
        reason = ascii(" ".join(done.stdout.split())[:REASON_CHARS_MAX])[1:-1]
        raise ModelError(f"model {model_id} was tried, and ONNX Runtime refuses it ({reason}): convert it again")
    raise ModelError(
        f"model {model_id} ended the process in which it was tried (status {done.returncode}; allowed are "
        f"{MEMORY_BYTES_MAX >> 30} GiB of memory and {CPU_SECONDS_MAX} s of processor time): give a smaller model"
    )


def limit() -> None:
    """Set this process's limits; it writes no file any more."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS_MAX, CPU_SECONDS_MAX))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def ask(data: bytes) -> None:
    """Open a graph, and ask it for one row and for as many as it will ever get at once; raises whatever that does."""
    import numpy as np

    from almanac.scoring import INPUT_NAME, ROWS_BATCH_MAX, open_session

    session = open_session("tried", data, 1)
    (entry,) = session.get_inputs()
    kind = np.float64 if entry.type == "tensor(double)" else np.float32
    for rows in (1, ROWS_BATCH_MAX):
        session.run(None, {INPUT_NAME: np.zeros((rows, int(entry.shape[1])), kind)})


def in_child() -> None:
    """What the process does: the limits first, and nothing of the model's before them."""
    import onnxruntime  # noqa: F401 - its own memory is not the model's

    data = Path(os.environ["ALMANAC_TRIAL_MODEL"]).read_bytes()
    limit()
    try:
        ask(data)
    except Exception as error:  # noqa: BLE001 - whatever the model does is what is asked about
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(REFUSED)
    os._exit(0)
