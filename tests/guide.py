"""The files that docs/add-a-pipeline.md shows, written where a test wants them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "add-a-pipeline.md"
SCRIPT_SECONDS_MAX = 120

_FILE = re.compile(r"^`bikes/([a-z_]+\.py)`:\n\n```python\n(.*?)```", flags=re.S | re.M)


def shown() -> dict[str, str]:
    """File name to text, as the page has them."""
    return dict(_FILE.findall(PAGE.read_text()))


def written(folder: Path) -> Path:
    """Write the page's files into a folder and run its data script; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in shown().items():
        (folder / name).write_text(text)
    subprocess.run([sys.executable, str(folder / "make_data.py")], check=True, timeout=SCRIPT_SECONDS_MAX)
    return folder
