"""The code on the way to a prediction is found by its imports, and its digest moves with what it does and no more."""

from __future__ import annotations

import ast
import compileall
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from almanac.code import cached, following, libraries
from almanac.code.compiled import compiled
from almanac.code.following import code_of, own_code_of
from almanac.code.libraries import ABSENT
from almanac.errors import UsageError
from features.identity import READING
from jobs.digests import STEPS

ROOT = Path(__file__).resolve().parents[2]
ON_THE_WAY = sorted(code_of(STEPS).modules)


def source_of(module: str) -> str:
    path = ROOT.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def digest_of(source: Any) -> str:
    return compiled(compile(source, "anywhere.py", "exec", dont_inherit=True)).digest


def constants(tree: ast.AST) -> Iterator[ast.Constant]:
    """The numbers and truth values of a module, and texts where they are values; what never runs is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring, or a text beneath an attribute
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield from constants(ast.Expression(node.value))
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
            yield node
        if isinstance(node, ast.JoinedStr):
            continue
        yield from constants(node)


@pytest.mark.parametrize("module", ON_THE_WAY)
def test_a_constant_that_changes_moves_the_digest_and_what_is_said_of_the_code_does_not(module: str) -> None:
    source, before = source_of(module), code_of(STEPS).modules[module]
    tree = ast.parse(source)
    found = list(constants(tree))
    for node in (*found[:1], *found[-1:]):
        was = node.value
        node.value = f"{was} otherwise" if isinstance(was, str) else not was if isinstance(was, bool) else was + 1
        assert digest_of(tree) != before, f"line {node.lineno}: {was!r}"
        node.value = was
    if not found:
        assert digest_of(f"{source}\nONE_MORE = 1\n") != before
    assert digest_of(f"# one more line\n\n\n{source}\n\n# the end\n") == before
    assert digest_of(ast.unparse(said_otherwise(tree))) == before  # every statement on a line, and no comment


def said_otherwise(tree: ast.Module) -> ast.Module:
    """The module with another docstring wherever one is, and one wherever none is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.body[: ast.get_docstring(node) is not None] = [ast.Expr(ast.Constant("What it is for."))]
    return tree


def test_docstrings_that_are_left_out_change_nothing() -> None:
    with_all = '"""Why."""\nclass A:\n    """Who."""\n    def f(self):\n        """How."""\n        return "How."\n'
    without = "class A:\n    def f(self):\n        return 'How.'\n"
    assert digest_of(with_all) == digest_of(without)
    assert digest_of(with_all) != digest_of(without.replace("How", "Who"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def f(a, b=1): return a", "def f(a, b=2): return a"),
        ("def f(a, *, b=1): return a", "def f(a, *, b=2): return a"),
        ("def f(a): return a < 1", "def f(a): return a <= 1"),
        ("def f(a): return a + 1", "def f(a): return a + 1.0"),
        ("def f(a): return 1", "def f(a): return True"),
        ("def f(a): return 0.0", "def f(a): return -0.0"),
        ("def f(a): return a in {'x', 'y'}", "def f(a): return a in {'x', 'z'}"),
        ("def f(a): return a in ('x', 'y')", "def f(a): return a in ('y', 'x')"),
        ("def f(a): return a.min()", "def f(a): return a.max()"),
        ("def f(a): return [b for b in a if b > 1]", "def f(a): return [b for b in a if b > 2]"),
        ("def f(a): return ('x' for b in a)", "def f(a): return ('y' for b in a)"),
        ("f = lambda a: 'x'", "f = lambda a: 'y'"),
        ("@cache\ndef f(a): return a", "def f(a): return a"),
        ("class A(B): x = 1", "class A(C): x = 1"),
        ("def f(a: int): return a", "def f(a: float): return a"),
        ("try:\n    f()\nexcept A:\n    g()", "try:\n    f()\nexcept B:\n    g()"),
        ("try:\n    f()\n    h()\nexcept A:\n    g()", "try:\n    f()\nexcept A:\n    g()\nh()"),
        ("def f(a):\n    if a: g()\n    h()", "def f(a):\n    if a:\n        g()\n        h()"),
        ("def f(a):\n    assert a", "def f(a):\n    pass"),
        ("def f(a, b): return g(a=a, b=b)", "def f(a, b): return g(b=a, a=b)"),
        ("def f(a): return f'{a:.3f}'", "def f(a): return f'{a:.2f}'"),
        ("def f(a):\n    while a: a = g(a)", "def f(a):\n    if a: a = g(a)"),
        ("async def f(a): return a", "def f(a): return a"),
        ("from a import b", "from c import b"),
    ],
)
def test_what_the_code_does_moves_the_digest(before: str, after: str) -> None:
    assert digest_of(before) != digest_of(after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def f(a): return g(a, 1)", "def f(\n    a,\n):\n\n    # why\n    return g(\n        a,\n        1,\n    )"),
        ("def f(a): return a and b or c", "def f(a):\n    return (\n        a\n        and b\n        or c\n    )"),
        ("X = 1000", "X = 1_000  # how many"),
        ("X = 'ab'", 'X = "a" "b"'),
        ("def f(a):\n    if a:\n        pass\n    return 1", "def f(a):\n    if a: pass\n    return 1"),
        ("if a: b = 1\nelse: b = 2", "if a:\n\n    b = 1\nelse:\n    # why\n    b = 2"),
    ],
)
def test_how_it_is_written_does_not(before: str, after: str) -> None:
    assert digest_of(before) == digest_of(after)


def test_more_constants_than_an_instruction_can_count_are_told_apart_and_a_docstring_moves_none() -> None:
    lines = "\n".join(f"    if a == {number}:\n        b.append('{number}')" for number in range(400))
    body = f"def f(a, b):\n{lines}\n    return b\n"
    said = body.replace("def f(a, b):\n", 'def f(a, b):\n    """What it does."""\n')
    assert digest_of(said) == digest_of(body)
    assert digest_of(body.replace("a == 399", "a == 1399")) != digest_of(body)


# --- what is followed


@contextmanager
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path in which nothing is installed, such as a user's own; caches are as of a new process."""
    monkeypatch.syspath_prepend(tmp_path)
    _as_a_new_process()
    yield tmp_path
    _as_a_new_process()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with own_folder(tmp_path, monkeypatch) as folder:
        yield folder


def _as_a_new_process() -> None:
    for one in (code_of, own_code_of, following._module, following._spec, following._beside, libraries._installed):
        one.cache_clear()
    cached.forget()


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))


IMPORTS = {
    "at the top": "import own.far",
    "by another name": "import own.far as f",
    "of a name in it": "from own.far import X",
    "as a name of its package": "from own import far",
    "relative": "from . import far",
    "relative, of a name": "from .far import X",
    "everything": "from own.far import *",
    "inside a function": "def f():\n    from own.far import X\n    return X",
    "inside a method's function": "class A:\n def f(self):\n  def g():\n   import own.far\n  return g",
    "inside a comprehension's lambda": "f = [lambda: __import__('own.far') for _ in '1']",
    "if something holds": "import os\nif os.name == 'nt':\n    import own.far",
    "where it may be absent": "try:\n    import own.far\nexcept ImportError:\n    pass",
    "where types are not checked": "from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    import own.far",
    "otherwise": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import json\nelse:\n    import own.far",
    "by its name": "from importlib import import_module\nM = import_module('own.far')",
    "by its name, relative": "from importlib import import_module\nM = import_module('.far', __package__)",
    "by a name that is put together": "from importlib import import_module\ndef f(n): import_module(f'own.{n}')",
    "by a sum": "from importlib import import_module\ndef f(n): import_module('own.' + n)",
    "by a name with a place for it": "from importlib import import_module\ndef f(n): import_module('own.{}'.format(n))",
    "by the old way to put it together": "import importlib\ndef f(n): importlib.import_module('own.%s' % n)",
    "by joined names": "import importlib\ndef f(n): importlib.import_module('.'.join(['own', n]))",
    "by its own package's name": "import importlib\ndef f(n): importlib.import_module(f'{__package__}.{n}')",
    "beside itself": "import importlib\ndef f(n): importlib.import_module('.' + n, __package__)",
    "as all that is in a package": "import pkgutil, own\ndef f(): return list(pkgutil.walk_packages(own.__path__))",
    "when it is asked for": "from own import lazy\ndef f(): return lazy.far",
    "by its own file's name": "import importlib.util as u\nf = u.spec_from_file_location('x', __file__[:-7] + 'r.py')",
    "by a pattern": "import glob, runpy\nf = [runpy.run_path(p) for p in glob.glob(__file__[:-7] + 'f*')]",
    "in a folder without __init__": "from own.plain import deep",
    "in such a folder, relative": "from .plain.deep import far",
    "by a name in such a folder": "from importlib import import_module\ndef f(n): import_module(f'own.plain.{n}')",
    "by what a package exports": "from own.exporting import *",
    "by a file of code": "from runpy import run_path\ndef f(): run_path('own/far.py')",
    "in a list of names": "NAMES = ['own.near', 'own.far']",
    "as a class by its dotted path": "KIND = 'own.far.Kind'",
    "in a file that is read": "from pathlib import Path\nTEXT = Path(__file__).with_name('settings.yaml').read_text()",
    "through another": "import own.middle",
    "as a class by its path and a colon": "KIND = 'own.far:Kind'",
    "by parts that are added up": "import importlib\nA, B = 'own', 'far'\nM = importlib.import_module(A + '.' + B)",
    "by its own name": "import importlib\ndef f(n): importlib.import_module(__name__.rpartition('.')[0] + '.' + n)",
    "as an attribute that its package loads": "import own.loading as l\nX = l.far",
    "as what a distribution offers": "from importlib import metadata\nE = metadata.entry_points(group='own.things')",
    "on a path that the code extends": "import sys\nsys.path.append(__file__[:-7] + 'vendored')\nimport vendored_far",
    "in a package on such a path": "import sys\nsys.path.append(__file__[:-7] + 'vendored')\nimport vendored_deep",
}


@pytest.mark.parametrize("code", IMPORTS.values(), ids=IMPORTS.keys())
def test_a_module_is_followed_however_it_is_imported(world: Path, code: str) -> None:
    files = {
        "own/__init__.py": "", "own/root.py": code, "own/far.py": "X = 1", "own/near.py": "",
        "own/exporting/__init__.py": "__all__ = ['inner']", "own/exporting/inner.py": "from .. import far",
        "own/lazy/__init__.py": "import importlib\ndef __getattr__(n): return importlib.import_module('own.' + n)",
        "own/plain/deep.py": "from own import far",
        "own/loading/__init__.py": "import importlib as i\ndef __getattr__(n): i.import_module(f'{__name__}.{n}')",
        "own/loading/far.py": "from own import far", "own/vendored/vendored_far.py": "import own.far",
        "own/vendored/vendored_deep/__init__.py": "", "own/vendored/vendored_deep/inner.py": "import own.far",
        "plug-1.0.dist-info/METADATA": "Name: plug\nVersion: 1.0\n",
        "plug-1.0.dist-info/entry_points.txt": "[own.things]\nfar = own.far:X\n",
        "own/middle.py": "def f():\n    from . import far", "own/settings.yaml": "type: own.far.Kind\n",
    }  # fmt: skip
    put(world, files)
    before = code_of(("own.root",))
    assert {"own", "own.root"} <= set(before.modules)
    assert "own.far" in before.modules or "own/far.py" in before.files
    (world / "own" / "far.py").write_text("X = 2222")
    _as_a_new_process()
    assert code_of(("own.root",)).digest != before.digest


def test_what_is_imported_for_type_checkers_alone_is_not_followed(world: Path) -> None:
    code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from own import far\nX = 'see own far'"
    put(world, {"own/__init__.py": "", "own/root.py": code, "own/far.py": "X = 1"})
    assert set(code_of(("own.root",)).modules) == {"own", "own.root"}


def test_packages_on_the_way_to_a_module_count_and_files_that_code_names(world: Path) -> None:
    put(
        world,
        {
            "own/__init__.py": "A = 1", "own/deep/__init__.py": "B = 1", "own/deep/root.py": "F = 'query.sql'",
            "own/deep/sql/query.sql": "SELECT 1", "own/deep/other.sql": "SELECT 2",
        },
    )  # fmt: skip
    before = code_of(("own.deep.root",))
    assert list(before.files) == ["own/deep/sql/query.sql"]
    changes = {"own/__init__.py": "A = 22", "own/deep/__init__.py": "B = 22", "own/deep/sql/query.sql": "SELECT 33"}
    for path, text in changes.items():
        (world / path).write_text(text)
        _as_a_new_process()
        after = code_of(("own.deep.root",))
        assert after.digest != before.digest
        before = after


def test_a_single_file_counts_with_the_files_beside_it_and_what_it_imports(world: Path) -> None:
    put(
        world, {"limits.py": "MOST = 5", "helper.py": "from limits import MOST\nTEXT = 'words.txt'", "words.txt": "a b"}
    )
    (world / "alone.py").write_text("import helper\n")
    before = code_of((str(world / "alone.py"),))
    assert set(before.modules) >= {"helper", "limits"}
    assert list(before.files) == ["helper/words.txt"]
    (world / "limits.py").write_text("MOST = 55")
    _as_a_new_process()
    assert code_of((str(world / "alone.py"),)).digest != before.digest


def test_libraries_count_by_version_with_what_they_require_and_what_is_absent(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import xarray, yaml, os\ntry:\n    import no_such_library\nexcept ImportError:\n    pass"
    (world / "root.py").write_text(code)
    found = code_of(("root",)).libraries
    assert {"xarray", "numpy", "pandas", "pyyaml"} <= set(found)  # xarray computes with the two in between
    assert found["no_such_library"] == ABSENT
    assert "os" not in found
    assert not {"feast", "pytest"} & set(found)
    before = code_of(("root",)).digest
    known = libraries._heading
    monkeypatch.setattr(
        libraries,
        "_heading",
        lambda one, name: ["99.9"] if name == "Version" and known(one, "Name") == ["numpy"] else known(one, name),
    )
    _as_a_new_process()
    assert code_of(("root",)).digest != before


def test_a_root_that_is_no_module_is_refused(world: Path) -> None:
    with pytest.raises(UsageError, match=r"own\.nothing is no module"):
        code_of(("own.nothing",))


ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
from almanac.code.following import code_of
print(code_of(("own.root",)).digest)
"""


def test_processes_places_and_hash_seeds_agree(tmp_path: Path) -> None:
    code = (
        "WORDS = {'a', 'b', 'c'}\ndef f(x):\n    '''Why.'''\n    return x in {'one', 'two', 'three', 'four', 5, None}\n"
    )
    for name in ("here", "there/deeper", "compiled"):
        put(tmp_path / name, {"own/__init__.py": "", "own/root.py": f"from own import far\n{code}", "own/far.py": code})
    assert compileall.compile_dir(tmp_path / "compiled", quiet=1, legacy=True)
    for path in (tmp_path / "compiled").rglob("*.py"):
        path.unlink()
    asked = [("here", "0"), ("here", "1"), ("there/deeper", "2"), ("compiled", "3")]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ASK, str(tmp_path / place)], stdout=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        for place, seed in asked
    ]  # fmt: skip
    said = [process.communicate()[0].strip() for process in running]
    assert len(said[0]) == 32
    assert set(said) == {said[0]}


# --- the project's own


def test_the_steps_that_the_dag_runs_before_it_publishes_are_those_that_are_followed() -> None:
    tree = ast.parse((ROOT / "dags" / "almanac_pipelines.py").read_text())
    build = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "build")
    tasks = {node.name: node for node in ast.walk(build) if isinstance(node, ast.FunctionDef)}
    after = {"build", "publish", "outcomes", "clean_up"}  # what these do changes no prediction of the run
    imported = {
        node.module
        for name, task in tasks.items()
        if name not in after
        for node in ast.walk(task)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jobs.")
    }
    assert imported == set(STEPS)


def test_no_code_on_the_way_reads_docstrings() -> None:
    for module in ON_THE_WAY:
        for node in ast.walk(ast.parse(source_of(module))):
            named = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
            assert named not in ("__doc__", "getdoc", "co_firstlineno"), f"{module}: a docstring would have to count"


def test_join_sources_reader_and_libraries_are_on_the_way_and_what_answers_is_not() -> None:
    code = code_of(STEPS)
    wanted = {"features.asof.search", "features.sources.grib", "features.interactions.fold", "features.offline_store"}
    assert wanted | {"almanac.scoring", "jobs.gate", "features.archive", "serving_cache.postgres_packing"} <= set(
        code.modules
    )
    assert list(code.files) == ["features/repo/feature_store.yaml"]
    computing = {"numpy", "pyarrow", "duckdb", "onnxruntime", "great-expectations", "pandas", "feast", "xarray"}
    assert computing <= set(code.libraries)
    assert not [name for name in code.modules if name.startswith(("serving_cache.lookup", "streaming", "dags"))]
    assert not [name for name in code.modules if name.endswith("cli") or name.startswith("almanac.stack")]
    assert set(code_of(READING).modules) < set(code.modules)
    assert json.dumps(code.modules)


def test_the_digest_is_of_compiled_code_alone() -> None:
    code: CodeType = compile("X = 1", "/one/place.py", "exec")
    other: CodeType = compile("\n\nX = 1", "/another/place.py", "exec")
    assert compiled(code) == compiled(other)
