"""Parquet files are opened by one module, which knows what they take before they are read."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOOR = "features/parquet_files.py"
WRITES = {"ParquetWriter", "write_table", "write_dataset"}
MODULES = {"pyarrow.parquet", "pyarrow.dataset", "pyarrow.orc", "pyarrow.feather"}
READS = {"read_parquet", "from_parquet", "scan_parquet", "parquet_scan", "ParquetFile", "ParquetDataset"}
"""What pandas, polars, DuckDB and pyarrow call a reader of Parquet, as a method or within SQL."""
OTHERS = {"dags/scheduler.py", "features/sources/parquet.py"}
"""One names modules that are loaded beforehand, one defines a function that is called as pandas' is."""


def readers(path: Path) -> list[str]:
    """Where a file reads Parquet by itself, or could."""
    text = path.read_text()
    if not any(word in text for word in ("arquet", "dataset", "orc", "feather")):
        return []
    tree = ast.parse(text)
    found, names = [], dict[str, str]()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=imported):
                names |= {one.asname or one.name: one.name for one in imported if one.name in MODULES}
            case ast.ImportFrom(module=module, names=imported) if module in MODULES:
                found += [f"{node.lineno}: imports {one.name}" for one in imported if one.name not in WRITES]
            case ast.ImportFrom(module="pyarrow", names=imported):
                names |= {one.asname or one.name: one.name for one in imported if f"pyarrow.{one.name}" in MODULES}
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and node.body
        if isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=attribute) if attribute in READS:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
            case ast.Attribute(value=ast.Name() | ast.Attribute() as value, attr=attribute) if names:
                if ast.unparse(value) in names and attribute not in {*WRITES, "field"}:
                    found.append(f"{node.lineno}: {ast.unparse(node)}")
            case ast.Constant(value=str(words)) if id(node) not in documented:
                if any(name in words for name in READS) or ".parquet'" in words:
                    found.append(f"{node.lineno}: {words[:60]!r}")
    return found


def test_nothing_else_reads_parquet() -> None:
    sources = [
        path
        for folder in ("almanac", "pipelines", "features", "serving_cache", "streaming", "jobs", "dags")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    found = {
        name: where
        for path in sources
        if (name := path.relative_to(ROOT).as_posix()) != DOOR and name not in OTHERS and (where := readers(path))
    }
    assert not found, found
    assert readers(ROOT / DOOR)  # what is looked for is there


def test_each_way_of_reading_is_noticed(tmp_path: Path) -> None:
    for text in (
        "import pyarrow.parquet as pq\npq.ParquetFile('x')",
        "import pyarrow.parquet\npyarrow.parquet.read_table('x')",
        "from pyarrow import parquet\nparquet.read_metadata('x')",
        "from pyarrow.parquet import read_schema",
        "import pyarrow.dataset as ds\nds.dataset('x')",
        "import pandas as pd\npd.read_parquet('x')",
        "connection.from_parquet('x')",
        "connection.sql(f'SELECT * FROM read_parquet($1)')",
        "connection.sql(f\"SELECT * FROM '{folder}/x.parquet'\")",
    ):
        path = tmp_path / "module.py"
        path.write_text(text)
        assert readers(path), text
    path.write_text("import pyarrow.parquet as pq\npq.write_table(t, 'x')")
    assert not readers(path)
