"""The command `dvc`: what it says, and that nothing of it outlives the call."""

from __future__ import annotations

import getpass
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from resflow.processes import die_with_parent

__all__ = ["dvc", "environment", "last_error", "user_name"]

ADVICE = re.compile(
    r"(Updat|Generat)ing lock|To track the changes|\tgit add |To enable auto|\tdvc config |Use `dvc push`|> "
    r"|Data and pipelines are up to date"
)
"""What DVC tells with each stage to who works by hand; resflow itself commits and pushes what ran. That all is up to
date is said of each stage in turn, and is not true of those to come."""
SHELLS = {"ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "mksh", "sh", "tcsh", "zsh"}
"""Programs in which DVC may run a stage's command: it takes the user's, by the variable SHELL."""
STOP_SECONDS = 15.0
"""A stage ends within a second or two of SIGTERM, with several workers or while its store hangs in ten or so."""


def dvc(
    root: Path, arguments: list[str], on_line: Callable[[str], object], env: Mapping[str, str] | None
) -> tuple[int, list[str]]:
    """Run dvc; its exit code and lines. Whatever ends this call also ends dvc and the stage under it."""
    lines: list[str] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=partial(die_with_parent, signal.SIGKILL),  # the stage below has set its own
    )
    try:
        for line in _said(process):
            lines.append(line)
            on_line(line)
        return process.wait(), lines
    except BaseException:
        deadline = threading.Timer(STOP_SECONDS, _kill_session, (process.pid,))
        deadline.start()
        try:
            _terminate(process)
            _read_on(process, on_line)
        finally:
            deadline.cancel()
            _kill_session(process.pid)
            process.wait()
        raise


def _said(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        text = line.rstrip()
        if text and not ADVICE.match(text):
            yield text


def _terminate(process: subprocess.Popen[str]) -> None:
    """End the stage that dvc runs, after which dvc ends by itself, and dvc alone where it runs none.

    Not all processes of the session: the stage needs those of Ray to keep a last checkpoint.
    """
    with suppress(psutil.NoSuchProcess):  # it has ended
        top = psutil.Process(process.pid)
        for one in _commands(top) or [top]:
            with suppress(psutil.Error):  # likewise, or it is another user's
                one.terminate()


def _commands(parent: psutil.Process) -> list[psutil.Process]:
    """What was started by `parent`, or by a shell that it started: dash stays where bash becomes its command."""
    found = []
    for child in parent.children():
        with suppress(psutil.Error):  # it has ended, or is another user's
            found += _commands(child) if Path(child.exe()).name in SHELLS else []
        found.append(child)
    return found


def _read_on(process: subprocess.Popen[str], on_line: Callable[[str], object]) -> None:
    """Hand on what a stage says that was told to end, until it has; another signal, or an error, changes nothing."""
    while True:
        try:
            for line in _said(process):
                if not line.startswith("ERROR"):  # dvc's, that its stage has ended
                    with suppress(Exception):
                        on_line(line)
            return
        except (KeyboardInterrupt, SystemExit):
            continue


def _kill_session(session: int) -> None:
    """Kill what is left of it: the workers of Ray have process groups of their own."""
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == session:
                os.kill(pid, signal.SIGKILL)


def last_error(lines: list[str]) -> str:
    """The last error of DVC's own."""
    return next((line for line in reversed(lines) if line.startswith("ERROR")), "").removeprefix("ERROR: ")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a command that must find `resflow` and `dvc`, and send no telemetry."""
    here = str(Path(sys.executable).parent)
    mine = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    mine["PATH"] = f"{here}{os.pathsep}{os.environ.get('PATH', '')}"
    if user_name() is None:
        mine["LOGNAME"] = str(os.getuid())
    return {**os.environ, **mine, **(extra or {})}


def user_name() -> str | None:
    """Who runs this, as DVC asks for it; None where it would fail, as in a container under an id of its own."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the latter from Python 3.13 on
        return None
