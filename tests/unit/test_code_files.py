"""Files that code reads count with it, wherever it finds them; so does what it changes, and what has one version."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from almanac.code import libraries
from almanac.code.following import code_of, own_code_of
from tests.unit.test_code import _as_a_new_process, own_folder, put


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with own_folder(tmp_path, monkeypatch) as folder:
        yield folder


@pytest.mark.parametrize(
    "code",
    [
        "F = Path(__file__).parent / 'sql' / 'query.sql'",
        "def f(name): return Path(__file__).with_name(f'{name}.sql')",
        "def f(): return sorted(Path(__file__).parent.glob('sql/*.sql'))",
        "def f(): return list((Path(__file__).parent / 'sql').iterdir())",
    ],
    ids=["named", "by its end", "by a pattern", "in a folder"],
)
def test_a_file_that_code_finds_from_its_own_place_counts(world: Path, code: str) -> None:
    put(
        world,
        {"own/__init__.py": "", "own/root.py": f"from pathlib import Path\n{code}", "own/sql/query.sql": "SELECT 1"},
    )
    before = code_of(("own.root",))
    assert "own/sql/query.sql" in before.files
    (world / "own/sql/query.sql").write_text("SELECT 2")
    _as_a_new_process()
    assert code_of(("own.root",)).digest != before.digest


FILES = {
    "of a package by its name": (
        "from importlib.resources import files\nF = files('own') / 'rates.csv'",
        "own/rates.csv",
    ),
    "of a package, by its end": (
        "from importlib import resources\ndef f(n): resources.files('own') / f'{n}.csv'",
        "own/a.csv",
    ),
    "by get_data": ("import pkgutil\ndef f(n): pkgutil.get_data('own', f'{n}.csv')", "own/a.csv"),
    "of another package": (
        "from importlib.resources import files\nF = files('other').joinpath('a.csv')",
        "other/a.csv",
    ),
    "of another by get_data": ("import pkgutil\nF = pkgutil.get_data('other', 'a.csv')", "other/a.csv"),
    "beside another": (
        "import other\nfrom pathlib import Path\nF = Path(other.__file__).with_name('a.csv')",
        "other/a.csv",
    ),
    "in a folder around": ("from pathlib import Path\nF = Path(__file__).parents[1] / 'data' / 'a.csv'", "data/a.csv"),
    "above": ("from pathlib import Path\nF = Path(__file__).parent / '../a.csv'", "a.csv"),
    "from a folder that another knows": ("from own.far import HERE\ndef f(n): return HERE / f'{n}.csv'", "own/a.csv"),
    "by a pattern there": ("from own.far import HERE\ndef f(): return list(HERE.glob('*.csv'))", "own/a.csv"),
    "of machine code": ("import ctypes\nL = ctypes.CDLL(__file__[:-7] + 'fast.so')\nN = 'fast.so'", "own/fast.so"),
}


@pytest.mark.parametrize(("code", "place"), FILES.values(), ids=FILES.keys())
def test_a_file_counts_wherever_code_finds_it(world: Path, code: str, place: str) -> None:
    far = "from pathlib import Path\nHERE = Path(__file__).parent"
    put(world, {"own/__init__.py": "", "own/root.py": code, "own/far.py": far, "other/__init__.py": "", place: "1,2"})
    before = code_of(("own.root",))
    (world / place).write_text("1,3")
    _as_a_new_process()
    assert code_of(("own.root",)).digest != before.digest


def test_a_long_text_in_a_file_of_ones_own_is_no_name_of_a_file(world: Path) -> None:
    (world / "alone.py").write_text(f"QUERY = 'SELECT {'x.y, ' * 200} FROM z.w'\n")
    assert set(code_of((str(world / "alone.py"),)).modules) == {str(world / "alone.py")}


@pytest.mark.parametrize("line", ["own.far.X = 2", "own.far.TABLE['a'] = 2", "setattr(own.far, 'X', 2)"])
def test_a_module_that_changes_another_does_more_than_declare(world: Path, line: str) -> None:
    put(world, {"own/__init__.py": "", "own/far.py": "X = 1\nTABLE = {}", "own/root.py": f"import own.far\n{line}"})
    before = own_code_of(("own.root",)).digest
    (world / "own/root.py").write_text(f"import own.far\n{line.replace('2', '3')}")
    _as_a_new_process()
    assert own_code_of(("own.root",)).digest != before


def test_what_was_installed_from_a_folder_counts_by_its_modules_for_its_version_may_stay(world: Path) -> None:
    put(
        world,
        {
            "root.py": "import local_one", "site-packages/local_one.py": "X = 1",
            "site-packages/local_one-1.0.dist-info/METADATA": "Name: local_one\nVersion: 1.0\n",
            "site-packages/local_one-1.0.dist-info/direct_url.json": "{}",
            "site-packages/local_one-1.0.dist-info/RECORD": "local_one.py,sha256=aaa,5\n../bin/x,sha256=b,1\n",
        },
    )  # fmt: skip
    record = world / "site-packages/local_one-1.0.dist-info/RECORD"
    sys.path.append(str(world / "site-packages"))
    try:
        found = {}
        for text in ("aaa", "bbb"):
            record.write_text(record.read_text().replace("aaa", text))
            _as_a_new_process()
            libraries.owners.cache_clear()
            found[text] = code_of(("root",)).libraries["local-one"]
        assert len(set(found.values())) == 2
        assert all(version.startswith("1.0 ") for version in found.values())
    finally:
        sys.path.remove(str(world / "site-packages"))
        libraries.owners.cache_clear()
