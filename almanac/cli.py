"""`almanac`: one command line; each package adds its own commands through an entry point.

The core does not import the packages above it: they announce a
`register(app)` function under the entry point group `almanac.commands`.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import typer

from almanac.errors import AlmanacError

COMMANDS_GROUP = "almanac.commands"
EXIT_INTERRUPTED = 130


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
        print(f"almanac: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, such as `head`, went away
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
