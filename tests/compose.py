"""docker-compose.yml as tests read it: variables filled in, merges done, services by the program they run."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docker-compose.yml"
VARIABLE = re.compile(r"(?<!\$)\$(?:\{(?P<name>\w+)(?P<rest>[^}]*)\}|(?P<bare>\w+))")
SECRET = re.compile(r"/run/secrets/(\w+)")
# Those that end when their work is done, and the command line.
ONCE = ("prepare", "airflow-schema", "almanac-schema")
TOOLS = ("cli",)
# Programs that no setting of ours starts: they come with the production form.
BESIDES = ("prometheus", "grafana")


def interpolated(text: str) -> str:
    """Variables replaced by their defaults, as the engine does when none is set.

    Raises:
        AssertionError: one has no default.
    """

    def default_of(match: re.Match[str]) -> str:
        name = match["name"] or match["bare"]
        assert (match["rest"] or "").startswith(":-"), f"{name} has no default: write ${{{name}:-…}}"
        return match["rest"].removeprefix(":-")

    return VARIABLE.sub(default_of, text).replace("$$", "$")


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    """The whole file."""
    lines = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    return dict(yaml.safe_load(interpolated("\n".join(lines))))


def services() -> dict[str, dict[str, Any]]:
    """All services by name."""
    return dict(document()["services"])


def program_of(name: str) -> str:
    """The program that a service runs, by its label, or its own name."""
    return str(services()[name].get("labels", {}).get("almanac.program", name))


def lasting() -> list[str]:
    """Services that stay."""
    return [name for name in services() if name not in ONCE + TOOLS]


def words_of(service: dict[str, Any]) -> list[str]:
    """Every string in a service, for what it mentions."""
    found: list[str] = []

    def gather(value: Any) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                gather(inner)
        elif isinstance(value, list):
            for inner in value:
                gather(inner)
        else:
            found.append(str(value))

    gather({key: value for key, value in service.items() if key != "secrets"})
    return found


def python_module(words: list[str]) -> tuple[str, list[str]] | None:
    """The module and arguments of `python -m …`, of a command or a health check."""
    words = words[1:] if words[:1] == ["CMD"] else words
    return (words[2], words[3:]) if words[:2] == ["python", "-m"] else None


def seconds(duration: str) -> float:
    """Seconds of `1m30s` and the like."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))
