"""Compare docs/compatibility.md with what the cases do now, or write its tables anew: `--write`."""

from __future__ import annotations

import argparse
import sys

from tests.compatibility.tables import PAGE, rendered, section, tables, with_section


def main() -> int:
    """0 where the page says what the cases do; 1 and the tables' names where it does not."""
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables of the page anew")
    write = parser.parse_args().write
    page, old = PAGE.read_text(), []
    for name, table in tables().items():
        now = rendered(table)
        if section(page, name) != now:
            old.append(name)
        if write:
            page = with_section(page, name, now)
    if write:
        PAGE.write_text(page)
    print(
        f"compatibility: {len(tables())} tables, {len(old)} {'written anew' if write else 'differ'}: {', '.join(old)}"
    )
    return 0 if write or not old else 1


if __name__ == "__main__":
    sys.exit(main())
