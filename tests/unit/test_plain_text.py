"""Text from outside is shown, and does nothing: in tables, in JSON, in what commands print, and in logs."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from typing import Any, Literal

import pytest

from almanac import logs
from almanac.output import print_json, print_table
from almanac.plain_text import PlainStream, one_line, plain
from almanac.settings import PROJECT_ROOT

MARKUP = '{"a":"[/b]"}'
"""What closes a tag of `rich`'s that nobody opened: it raised an error in the table of dead letters."""
ACTING = {
    "an escape sequence": "\x1b[31m\x1b]0;title\x07",
    "a link": "\x1b]8;;https://example.com\x1b\\here\x1b]8;;\x1b\\",
    "an escape sequence of one byte": "\x9b31m",
    "a line break": "first\nsecond",
    "a return to the line's beginning": "bad\rgood",
    "a backspace": "bad\b\b\bgood",
    "a separator of lines": "first\u2028second\u2029third\x85fourth",
    "text turned around": "\u202eevil\u202c \u2066\u2069",
    "an invisible mark": "a\u200bb\ufeff\U000e0001",
    "half a character": "a\ud800b",
}


@pytest.mark.parametrize("text", ACTING.values(), ids=ACTING.keys())
def test_every_acting_character_is_written_out_wherever_it_is_shown(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain(text).isprintable()
    print_table(["a", text], [[text, 1]], title=text)
    print_json({text: [text]})
    PlainStream(sys.stdout).write(f"{text}\n")
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.split("\n"))
    assert json.loads(shown[shown.index("{\n") : shown.rindex("}") + 1]) == {text: [text]}


def test_markup_is_text_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    link = "[link=https://example.com]click[/link] :smile:"
    print_table([MARKUP, "b"], [[MARKUP, link], [None, 1]], title="[/title]")
    shown = capsys.readouterr().out
    assert shown.count(MARKUP) == 2
    assert all(text in shown for text in (link, "[/title]", "–"))


def test_letters_of_all_scripts_stay_readable() -> None:
    text = "żółw 東京 عربي 🚲 e\u0301"
    assert plain(text) == text
    assert one_line(f"a\n  b {text}\x1b") == f"a b {text}\\x1b"


@pytest.mark.parametrize("log_format", ["text", "json", "logfmt"])
@pytest.mark.parametrize("text", ACTING.values(), ids=ACTING.keys())
def test_a_log_line_stays_one_line_that_does_nothing(text: str, log_format: Literal["text", "json", "logfmt"]) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.Formatter("stream", log_format))
    extra: dict[str, Any] = {"pipeline": text}
    handler.emit(logging.makeLogRecord({"name": "streaming", "msg": "said %s", "args": (text,), **extra}))
    line, rest = written.getvalue().split("\n")
    assert (line.isprintable(), rest) == (True, "")
    if log_format == "json":
        found = json.loads(line)
        assert (found["message"], found["pipeline"]) == (f"said {text}", text)


def test_a_traceback_in_a_log_keeps_its_lines_and_does_nothing() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.Formatter("stream", "text"))
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        record = {"msg": "no", "exc_info": sys.exc_info()}
        handler.emit(logging.makeLogRecord(record))
    lines = written.getvalue().split("\n")
    assert len(lines) > 3
    assert "ValueError: \\x1b[2J" in lines
    assert all(line.isprintable() for line in lines)


def test_a_command_shows_its_own_error_and_traceback_plainly() -> None:
    """Whatever prints it: the command itself, its library of options, or the interpreter."""
    for arguments in (["--debug", "publish", "\x1b[31m"], ["\x1b[31m"]):
        done = subprocess.run(
            [sys.executable, "-m", "almanac.cli", *arguments], cwd=PROJECT_ROOT, capture_output=True, check=False,
            text=True, input="",
        )  # fmt: skip
        assert done.returncode
        assert "\\x1b[31m" in done.stderr
        assert "\x1b" not in done.stdout + done.stderr
