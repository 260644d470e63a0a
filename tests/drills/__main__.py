"""Many drills, and their table in docs/reliability.md: `python -m tests.drills --times 100`, or `make drills N=100`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.report import environment, table
from resflow.files import write
from tests.conftest import make_project, stop_store
from tests.drills.drill import KINDS, RECIPE, drill, last_step, outputs, undisturbed

PAGE = Path("docs/reliability.md")
EVERY = RECIPE["checkpoint__steps"]
HEAD = f"""# Reliability

A run that is killed goes on from its last checkpoint when the same command is run again, and ends in the bits of a run
that was left alone. This page is written by `make drills N=...`: each drill trains a small network on synthetic digits
({last_step()} steps, a checkpoint every {EVERY}), sends SIGKILL once or twice, runs the command again, and compares the
SHA-256 of `model.safetensors`, `metrics/train.json` and `plots/train/curves.csv` with those of an undisturbed run.
Every other drill kills when the newest checkpoint has passed a random step, the others at a random time between the
start of the command and its end: while it loads, starts a cluster, or writes what it has made. (A worker of Ray is only
there to be killed while it trains.) `make test` runs some of either sort, always of the same seeds, and stops by
SIGTERM and Ctrl-C beside them.

DVC writes two files of its own in place, `dvc.lock` and `.dvc/tmp/rwlock`. A kill of `dvc repro` in that very moment
leaves one half written, which the next `dvc repro` mostly refuses: it then needs `rm .dvc/tmp/rwlock`, or `rm dvc.lock`
(`git checkout dvc.lock` where git has it), first, and the last column counts how often. `resflow run` removes the one
by itself, and puts the other back as the last stage that it started had found it.
"""


def main() -> None:
    """Run them, and write the page where they are of all kinds; exits with 1 where one ended in other bits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="drills of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        project = make_project(Path(folder) / "place" / "project", home)
        project.edit(**RECIPE)
        project.run("dvc", "repro", "prepare")
        try:
            for name in arguments.kinds:
                kind = KINDS[name]
                seconds, wanted = undisturbed(project, kind), outputs(project)
                outcomes = []
                for seed in range(arguments.times):
                    at_any_time = seed % 2 == 1 and not kind.survives
                    outcomes.append(drill(project, kind, seed, seconds if at_any_time else None))
                    print(f"{name} {seed}: {outcomes[-1]}", flush=True)
                same = sum(outcome.outputs == wanted for outcome in outcomes)
                wrong += len(outcomes) - same
                kills = sum(outcome.kills for outcome in outcomes)
                by_hand = sum(outcome.by_hand for outcome in outcomes) if kind.command[0] == "dvc" else "-"
                rows.append([kind.what, *map(str, (len(outcomes), kills, same, by_hand))])
        finally:
            stop_store(project)
    body = table(
        ["killed", "drills", "kills", "ended in the same bits", "half-written files of DVC deleted by hand"], rows
    )
    command = f"`make drills N={arguments.times}` on {environment()}."
    if arguments.kinds == list(KINDS):
        write(PAGE, f"{HEAD}\n{command}\n\n{body}".encode())
    print(body)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
