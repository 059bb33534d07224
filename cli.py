"""The `chamtune` command: which commands there are, and what an error says.

Heavy rooms are imported inside the commands, so that `chamtune --help` is quick. Exit codes follow sysexits (64 usage,
65 data, 69 unavailable, 70 internal); 3 is a refused promotion, 1 a study without a feasible trial, 128 + n a run that
signal n stopped, 141 among them where nobody reads the output to its end.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from commands import data, deploying, insights, serving, studying
from commands.auto import auto

USAGE, UNAVAILABLE, INTERNAL, IO_ERROR, CLOSED = 64, 69, 70, 74, 141
"""Exit codes: wrong arguments, a storage that fails, a fault of ours, a disk or file that fails, an output that nobody
reads to its end, for which typer and rich leave by themselves."""
ARGUMENTS_ERROR: Any = typer.BadParameter.__base__
"""What typer raises for wrong arguments."""
ANYWHERE = {"--debug": "debug", "--quiet": "quiet", "-q": "quiet", "--verbose": "verbose", "-v": "verbose"}
"""Options that may stand anywhere."""

app = typer.Typer(
    help="Find the best way to personalise an LLM classifier, prove it, and deploy it.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Check and export data sets.")
app.add_typer(data_app, name="data")

COMMANDS: tuple[Callable[..., None], ...] = (
    auto,
    studying.run,
    studying.init,
    studying.studies,
    studying.show,
    deploying.promote,
    deploying.rollback,
    deploying.predict,
    deploying.export,
    serving.serve,
    serving.replay,
    serving.monitor,
    serving.retune,
    studying.compare,
    studying.summary,
    insights.insights,
    studying.ui,
    studying.sync,
    studying.schema,
)
for command in COMMANDS:
    app.command()(command)
app.command("import")(insights.import_)
for of_data in (data.check, data.export):
    data_app.command()(of_data)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"chamtune {version('chamtune')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback. May stand anywhere.")] = False,
    _quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no tables. May stand anywhere.")] = False,
    _verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log. May stand anywhere.")] = False,
) -> None:
    """Find the best way to personalise an LLM classifier, prove it, and deploy it."""


def main() -> None:
    """Run the command line; every error is one line and an exit code, with the traceback where --debug is given."""
    from personalization.threads import wait_briefly
    from studies.shown.consoles import speak

    wait_briefly()
    given = {ANYWHERE[argument] for argument in sys.argv[1:] if argument in ANYWHERE}
    arguments = [argument for argument in sys.argv[1:] if argument not in ANYWHERE]
    try:
        speak("quiet" not in given, "verbose" in given)
        groups = [[], *([group.name] for group in app.registered_groups)]
        code = app([*arguments, "--help"] if arguments in groups else arguments, "chamtune", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except ARGUMENTS_ERROR as error:
        command = error.ctx.command_path if error.ctx else "chamtune"
        print(f"error: {error.format_message().rstrip('.')}; `{command} -h` tells more", file=sys.stderr)
        sys.exit(USAGE)
    except SystemExit as ended:
        code = CLOSED if isinstance(ended.__context__, BrokenPipeError) else ended.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = CLOSED
    except Exception as error:
        if "debug" in given:
            traceback.print_exc()
        message, code = _told(error)
        print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _told(error: Exception) -> tuple[str, int]:
    """One line for an error, and its exit code."""
    from personalization.errors import ChamtuneError, first_line

    if isinstance(error, ChamtuneError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or error}", IO_ERROR
    from studies.storage import STORAGE_ERRORS, reason

    if isinstance(error, STORAGE_ERRORS):
        return f"the storage failed: {reason(error)}; the same command goes on when it is back", UNAVAILABLE
    return f"{type(error).__name__}: {first_line(error)}; this should not happen, --debug shows where it did", INTERNAL


if __name__ == "__main__":
    main()
