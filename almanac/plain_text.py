"""Text from outside, as a terminal or a log may show it: every character that would do something is written out.

An event, a header, a file's name or another server's answer may hold escape sequences, links, line breaks and
marks that turn text around. All text that is shown goes through here: `almanac.output` writes its tables and JSON
by it, `almanac.logs` its lines, and `show_plainly` sees to whatever else a command prints.
"""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO, cast

LINE_BREAK_AND_TAB = "\n\t"


def plain(text: str, *, keep: str = "") -> str:
    r"""The text with each character that is not printable as an escape, such as `\x1b` or `\u202e`.

    Args:
        keep: characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode() for each in text
    )


def one_line(text: object) -> str:
    """What an error says, as the one line that a command ends with."""
    return plain(" ".join(str(text).split()))


def plain_json(value: Any, *, indent: int | None = None) -> str:
    """JSON whose strings hold no character that is not printable: these are escaped, other letters stay readable."""
    text = json.dumps(value, default=str, ensure_ascii=False, indent=indent)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


class PlainStream:
    """A text stream that shows plainly what is printed; what `rich` draws itself passes, its parts were made plain.

    Args:
        rich_proxied_file: the stream behind it, by the name under which `rich` looks for one.
    """

    def __init__(self, rich_proxied_file: TextIO) -> None:
        self.rich_proxied_file = rich_proxied_file

    def write(self, text: str) -> int:
        """Write the text, line breaks and tabs as they are."""
        self.rich_proxied_file.write(plain(text, keep=LINE_BREAK_AND_TAB))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def show_plainly() -> None:
    """From now on this process's standard output and standard error show every text plainly, tracebacks too."""
    sys.stdout, sys.stderr = (cast(TextIO, PlainStream(stream)) for stream in (sys.stdout, sys.stderr))
