"""The docs are held to the code: settings, commands, words, links."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from almanac.cli import build_app
from almanac.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def commands_in(page: Path) -> list[list[str]]:
    """Every `almanac …` and `make …` line of a page's console blocks."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), flags=re.S):
        for line in block.splitlines():
            last = line.split("|")[-1].strip()
            if last.startswith(("almanac ", "make ")):
                found.append(shlex.split(last))
    return found


def test_every_setting_is_documented_with_its_variable() -> None:
    table = (ROOT / "docs" / "operations.md").read_text()
    documented = set(re.findall(r"\| `ALMANAC_([A-Z_]+)` \|", table))
    assert documented == {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_shown_exist_with_their_options(page: Path) -> None:
    group = typer.main.get_command(build_app())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for words in commands_in(page):
        if words[0] == "make":
            assert words[1] in targets, f"make has no target {words[1]}"
            continue
        command = group.commands[words[1]]  # type: ignore[attr-defined]
        if words[1] == "models":  # a group; without a word of its own it lists
            command = command.commands[words[2] if words[2:] and words[2] in command.commands else "list"]
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        for word in words[2:]:
            if word.startswith("--"):
                assert word.split("=")[0] in known, f"{' '.join(words)}: no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_nothing_names_a_registry_host_or_this_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    hosts = re.compile(r"https?://[a-z0-9.-]*(py" r"pi|pythonhosted|mav" r"en\.org|npmjs|crates\.io)", re.I)
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".png", ".npz", ".parquet"} or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        assert not hosts.search(text), f"{name} names a registry's host"
        assert str(ROOT) not in text, f"{name} names a path of this machine"


def test_help_lists_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "almanac.cli", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    for command in ("up", "down", "status", "train", "trigger", "publish", "lookup", "generations", "models"):
        assert re.search(rf"\b{command}\b", done.stdout), f"{command} is not in --help"


def test_architecture_names_every_module_of_the_core() -> None:
    (core,) = re.findall(
        r"^## Core .*?(?=^## )", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE | re.DOTALL
    )
    modules = {path.name for path in (ROOT / "almanac").glob("*.py")} - {"__init__.py"}
    assert {name for name in modules if f"`{name}`" not in core} == set()
