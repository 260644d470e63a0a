"""Run the stages of dvc.yaml and read their state. The only room that knows DVC.

Stages run as the command `dvc repro`, never through DVC's Python API, under which two threads may run one stage at
once. What a stage does is `resflow.stages`; what happens with its results is `tasks`.

    run.py          what a caller asks for: a stage, a push, what is edited
    definition.py   dvc.yaml and dvc.lock
    worktrees.py    a second work tree for experiments
    command.py      the command itself, and its end
    locks.py        what DVC may leave half written
"""

from __future__ import annotations

from resflow.pipeline.command import environment, user_name
from resflow.pipeline.definition import dependency, differing, find_root, recorded_files, stage_names
from resflow.pipeline.locks import mend
from resflow.pipeline.run import StageRun, edited, push, run_stage
from resflow.pipeline.worktrees import in_git, worktree

__all__ = [
    "StageRun",
    "dependency",
    "differing",
    "edited",
    "environment",
    "find_root",
    "in_git",
    "mend",
    "push",
    "recorded_files",
    "run_stage",
    "stage_names",
    "user_name",
    "worktree",
]
