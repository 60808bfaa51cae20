"""Run the benchmarks, and put their figures into docs/performance.md.

    make bench NAME=record [ARGS="batch stream" | ARGS=--quick]

Each benchmark's last line replaces the block of its name; the table of
capacity is made anew from all blocks. Run it on a machine that does nothing else.
`--quick` measures nothing: it fails where the table is not what the blocks give.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
CAPACITY = "capacity"
RUN_SECONDS_MAX = 3_600
LINE_MAX = 118


def names_on(page: str) -> tuple[str, ...]:
    """The benchmarks whose figures stand on the page, in its order: the table of capacity is made of them."""
    return tuple(name for name in re.findall(r"<!-- figures: (\w+) -->", page) if name != CAPACITY)


def block_of(page: str, name: str) -> str:
    """What stands between a name's marks.

    Raises:
        SystemExit: the page has no such marks.
    """
    found = re.search(rf"<!-- figures: {name} -->\n(.*?)<!-- end -->", page, re.S)
    if found is None:
        raise SystemExit(f"{PAGE.name} has no block `<!-- figures: {name} -->`: put it back")
    return found[1]


def with_block(page: str, name: str, text: str) -> str:
    """The page with another block under a name."""
    block_of(page, name)
    marked = f"<!-- figures: {name} -->\n{text}<!-- end -->"
    return re.sub(rf"<!-- figures: {name} -->\n.*?<!-- end -->", lambda _: marked, page, flags=re.S)


def as_block(line: dict[str, Any]) -> str:
    """A line of figures as JSON that fits a page: an object a line, short ones whole."""
    return f"```json\n{_laid_out(line, '')}\n```\n"


def _laid_out(value: Any, indent: str) -> str:
    whole = json.dumps(value)
    if not isinstance(value, dict) or len(whole) + len(indent) <= LINE_MAX // 2:
        return whole
    inner, lines, row = indent + "  ", [], ""
    for name, entry in value.items():
        text = f"{json.dumps(name)}: {_laid_out(entry, inner)}"
        if "\n" in text or len(inner) + len(row) + len(text) + 2 > LINE_MAX:
            lines += [row] if row else []
            row = ""
        if "\n" in text:
            lines.append(text)
        else:
            row = f"{row}, {text}" if row else text
    lines += [row] if row else []
    return "{\n" + ",\n".join(inner + line for line in lines) + f"\n{indent}}}"


def figures(page: str) -> dict[str, dict[str, Any]]:
    """The figures that stand on the page, by benchmark; those without any are absent."""
    found = {}
    for name in names_on(page):
        text = re.search(r"```json\n(.*?)```", block_of(page, name), re.S)
        if text is not None:
            found[name] = json.loads(text[1])
    return found


def capacity(found: dict[str, dict[str, Any]]) -> str:
    """The table of what one core does, from the figures of all benchmarks."""
    rows: list[tuple[str, str, str]] = []

    def add(what: str, value: Any, unit: str, bench: str) -> None:
        rows.append((what, f"{value:,} {unit}", f"`make bench NAME={bench}`"))

    if batch := found.get("batch"):
        add("batch, one process, without and with gates", batch["ours"], "rows/s", "batch")
        rows[-1] = (rows[-1][0], f"{batch['ours']:,} and {batch['with_gates']:,} rows/s", rows[-1][2])
        stored = batch["stored"]
        add("Postgres, one cell of one generation (4 outputs)", stored["postgres_bytes_per_cell"], "bytes", "batch")
        add("Redis, one cell of one generation (4 outputs)", stored["redis_bytes_per_cell"], "bytes", "batch")
        add("memory of a batch process after its runs", batch["memory_mb"]["job"], "MB", "batch")
    if rerun := found.get("rerun_shop"):
        add(
            "Postgres, what one ranked entity was scored from",
            rerun["postgres_bytes_per_entity"],
            "bytes",
            "rerun-shop",
        )
    if shop := found.get("batch_shop"):
        add("batch that ranks, one process, 50 pairs an entity", shop["ours"], "entities/s", "batch-shop")
        add("most memory of a batch process that ranks", shop["peak_mb"], "MB", "batch-shop")
    if lookup := found.get("lookup"):
        add("lookup, one cell", lookup["one"]["ours"]["rate"], "requests/s", "lookup")
        add("lookup, a hundred cells", lookup["hundred"]["ours"]["rate"], "requests/s", "lookup")
        add("memory of a lookup process", lookup["memory_mb"]["lookup"], "MB", "lookup")
    if answer := found.get("answer"):
        add("lookup, freshly computed", answer["ours"], "requests/s", "answer")
        add("memory of a lookup process that computes", answer["memory_mb"]["lookup"], "MB", "answer")
    if stream := found.get("stream"):
        add("stream worker", stream["ours"], "events/s", "stream")
        add("overlay sink by itself", stream["sinks"]["overlays"], "events/s", "stream")
        add("features sink by itself", stream["sinks"]["features"], "events/s", "stream")
        add("memory of a process with worker and sinks", stream["memory_mb"]["process"], "MB", "stream")
        add("Redis, one overlay (4 outputs)", stream["stored"]["redis_bytes_per_overlay"], "bytes", "stream")
        add("Redis, one entity's 30 online features", stream["stored"]["redis_bytes_per_entity"], "bytes", "stream")
    if historical := found.get("features", {}).get("historical_10m"):
        add("point-in-time retrieval, 20 features", historical["ours"], "rows/s", "features")
    if join := found.get("join"):
        add("memory of a join with 100 million rows", join["peak_memory_mb"], "MB", "join")
    lines = [f"| {what} | {value} | {command} |" for what, value, command in rows]
    return "\n".join(["| what | one core | command |", "|---|---|---|", *lines]) + "\n"


def measured(name: str) -> dict[str, Any]:
    """Run a benchmark and return its last line.

    Raises:
        SystemExit: it failed.
    """
    print(f"== {name}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PAGE.parent.parent) as process:
        last = ""
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line
        if process.wait(RUN_SECONDS_MAX) != 0:
            raise SystemExit(f"benchmark {name} failed: nothing is recorded for it")
    line_of: dict[str, Any] = json.loads(last)
    return line_of


def unlike(page: str) -> list[str]:
    """What is wrong with a page: blocks of no benchmark, and a table that its blocks do not give."""
    from benchmarks.__main__ import benchmarks

    wrong = [f"{PAGE.name} has figures of {name!r}, which is no benchmark" for name in names_on(page)
             if name not in benchmarks()]  # fmt: skip
    if block_of(page, CAPACITY) != capacity(figures(page)):
        wrong.append(f"{PAGE.name}'s table of capacity is not what its figures give: make bench NAME=record")
    return wrong


def main() -> int:
    """Measure and write, one benchmark after the other; 1 if `--quick` sees something wrong."""
    page = PAGE.read_text()
    names = names_on(page)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=names, help=f"which of {', '.join(names)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="compare the table with the figures; measure nothing")
    given = parser.parse_args()
    if given.quick:
        wrong = unlike(page)
        print("\n".join(wrong or [f"{PAGE.name}: {len(names)} benchmarks, the table is what their figures give"]))
        return 1 if wrong else 0
    for name in given.names:
        line = measured(name)
        page = with_block(PAGE.read_text(), name, as_block(line))
        PAGE.write_text(with_block(page, CAPACITY, capacity(figures(page))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
