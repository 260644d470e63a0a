"""The `resflow` command: `resflow stage NAME` goes straight to the stage, all else to `resflow.cli`.

A stage loads no code of the command line, so that a change there leaves every result of `dvc repro` up to date.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the console script."""
    if sys.argv[1:2] == ["stage"] and len(sys.argv) == 3 and not sys.argv[2].startswith("-"):
        from resflow.stages import main as run_stage

        sys.exit(run_stage(sys.argv[2]))
    from resflow.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
