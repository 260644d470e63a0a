"""The `resflow` command. Each function parses, calls and prints; the work is in the rooms below.

Heavy packages are imported by the command that needs them, so that `resflow --help` answers at once. `resflow stage` is
told here for `--help` alone: `resflow.__main__` runs it without this package. Tables and colours are
`resflow.terminal`. The commands lie by what they are about: the `pipeline` that is run, `models`, the `search`,
`structures`, and the `machine`; `common` has what several of them share, `server` their Prefect.
"""

from __future__ import annotations

import signal
import sys

import typer

from resflow import terminal
from resflow.cli import machine, models, pipeline, search, structures
from resflow.cli.common import EXIT_CODES, examples
from resflow.errors import ResflowError

__all__ = ["EXIT_CODES", "app", "main"]

app = typer.Typer(
    help="Train residual networks, release them, and use them. In a clone of the project, `resflow run` does it all.",
    epilog=examples("resflow run", "resflow models list", "resflow predict digit.png")
    + "\n\n**Exit codes**\n\n"
    + "\n".join(f"- {code}: {meaning}" for code, meaning in EXIT_CODES.items()),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
for module in (pipeline, models, structures, machine):
    app.add_typer(module.commands)
app.add_typer(models.group, name="models")
app.add_typer(search.group, name="search")
app.add_typer(machine.group, name="store")


def main() -> None:
    """Run the command line: one line for an error the user can mend, a traceback only for a bug."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # by `resflow.__main__`; one that is ignored stays so
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _end)
    try:
        app()
    except KeyboardInterrupt:  # while the commands are put together; then typer says the same
        sys.exit(128 + signal.SIGINT)
    except ResflowError as error:
        terminal.error(str(error))
        sys.exit(1)


def _end(number: int, frame: object) -> None:
    """Unwind on SIGTERM, so that stages end and locks are let go. Prefect calls this too, once it has noted the end."""
    sys.exit(128 + number)
