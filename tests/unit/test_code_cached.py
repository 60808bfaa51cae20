"""What is known of compiled modules is kept between processes, and never believed where it may be of something else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from almanac.code import cached, following
from almanac.code.following import code_of, own_code_of


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cached, "_path", lambda: tmp_path / "cache" / "code.json")
    (tmp_path / "root.py").write_text("import far\n")
    (tmp_path / "far.py").write_text("X = 1\n")
    as_a_new_process()
    yield tmp_path
    as_a_new_process()


def as_a_new_process() -> None:
    for one in (code_of, own_code_of, following._module, following._spec, following._beside):
        one.cache_clear()
    cached.forget()


def worked_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the modules whose code is looked through from now on."""
    names: list[str] = []
    known = cached._code
    monkeypatch.setattr(cached, "_code", lambda spec: names.append(spec.name) or known(spec))  # type: ignore[func-returns-value]
    return names


def test_a_second_process_works_out_nothing_and_comes_to_the_same(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    before = code_of(("root",))
    as_a_new_process()
    names = worked_out(monkeypatch)
    assert code_of(("root",)) == before
    assert names == []


def test_another_source_of_the_same_size_and_time_is_another(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    before, status = code_of(("root",)), os.stat(world / "far.py")
    (world / "far.py").write_text("X = 2\n")
    os.utime(world / "far.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    as_a_new_process()
    names = worked_out(monkeypatch)
    assert code_of(("root",)).digest != before.digest
    assert names == ["far"]


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "a list", "no text", "a folder"])
def test_a_file_that_is_damaged_is_read_as_no_file(world: Path, damage: str) -> None:
    before = code_of(("root",))
    path = world / "cache" / "code.json"
    text = path.read_text()
    digest = before.modules["far"]
    if damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        data = {
            "cut": text[:-9], "changed": text.replace(digest, "0" * 32), "empty": "", "no text": "\udcff",
            "a list": f"{cached._digest(b'[]')}\n[]",
        }[damage]  # fmt: skip
        path.write_bytes(data.encode(errors="surrogateescape"))
    as_a_new_process()
    assert code_of(("root",)) == before


def test_the_file_keeps_a_limited_number_of_modules_those_in_use_first(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.setattr(cached, "ENTRIES_MAX", 2)
    code_of(("root",))
    for number in range(3):
        (world / "far.py").write_text(f"X = 'number {number}'\n")
        as_a_new_process()
        code_of(("root",))
    assert len(cached._read()) == 2
    as_a_new_process()
    names = worked_out(monkeypatch)
    code_of(("root",))
    assert names == []
