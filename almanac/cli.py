"""`almanac`: one command line; each package adds its own commands through an entry point.

The core does not import the packages above it: they announce a
`register(app)` function under the entry point group `almanac.commands`.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.metadata import entry_points

import typer

from almanac.errors import AlmanacError
from almanac.plain_text import one_line, show_plainly

COMMANDS_GROUP = "almanac.commands"
EXIT_INTERRUPTED = 130
HEAVY = frozenset({"lightgbm", "onnxruntime"})
"""Modules after whose use a process ends at once."""


def build_app() -> typer.Typer:
    """The command line with every registered command."""
    app = typer.Typer(
        name="almanac",
        help="Predictions computed beforehand and looked up.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # importing rich's Markdown costs more than everything else `--help` does
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def common(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
        """Options that stand before the command's name."""

    for entry in sorted(entry_points(group=COMMANDS_GROUP), key=lambda found: found.name):
        entry.load()(app)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run one command; an `AlmanacError` becomes one line on stderr and its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    rest = [argument for argument in arguments if argument != "--debug"]
    try:
        build_app()(rest)
    except AlmanacError as error:
        if debug:
            raise
        print(f"almanac: {one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, such as `head`, went away
        sys.stderr.close()
        sys.exit(0)


def console() -> None:
    """`main` as a whole process: ends with its exit code, whatever native libraries would do on their way out.

    After a training or a scoring, with LightGBM, ONNX Runtime, DuckDB and Arrow in one process, taking them all down
    has ended in a segmentation fault, after everything was done and said.
    """
    code: int | str | None = 0
    show_plainly()
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    if HEAVY.isdisjoint(sys.modules):
        sys.exit(code)
    with suppress(ValueError, OSError):  # closed, or its reader went away
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    console()
