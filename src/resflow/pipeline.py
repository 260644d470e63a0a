"""Run the stages of dvc.yaml and read their state. The only module that knows DVC.

Stages run as the command `dvc repro`, never through DVC's Python API, under which two threads may run one stage at
once. What a stage does is `resflow.stages`; what happens with its results is `tasks`.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
import yaml
from filelock import FileLock, Timeout

from resflow.errors import RETRYABLE, SetupError, StageError
from resflow.files import write
from resflow.params import RUN_TREES
from resflow.processes import die_with_parent, locked

__all__ = [
    "Pushed",
    "StageRun",
    "dependency",
    "differing",
    "edited",
    "environment",
    "find_root",
    "in_git",
    "push",
    "recorded_files",
    "run_stage",
    "stage_names",
    "user_name",
    "worktree",
]

ADVICE = re.compile(
    r"(Updat|Generat)ing lock|To track the changes|\tgit add |To enable auto|\tdvc config |Use `dvc push`|> "
    r"|Data and pipelines are up to date"
)
"""What DVC tells with each stage to who works by hand; resflow itself commits and pushes what ran. That all is up to
date is said of each stage in turn, and is not true of those to come."""
OUTPUTS = ("outs", "metrics", "plots")
"""Where dvc.yaml names what a stage writes; dvc.lock has it all as `outs`."""
SHELLS = {"ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "mksh", "sh", "tcsh", "zsh"}
"""Programs in which DVC may run a stage's command: it takes the user's, by the variable SHELL."""
STOP_SECONDS = 15.0
"""A stage ends within a second or two of SIGTERM, with several workers or while its store hangs in ten or so."""


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """How one stage went."""

    name: str
    ran: bool
    """False where DVC found its result up to date or in its cache."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What `dvc push` did."""

    files: int
    seconds: float


def find_root(start: Path) -> Path:
    """The nearest folder at or above `start` that holds dvc.yaml and params.yaml. Raises `SetupError`."""
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            return folder
    problem = "is not in a resflow project: no dvc.yaml here or above"
    raise SetupError(str(start), problem, "Change into a clone of the project")


def stage_names(root: Path) -> list[str]:
    """The stages of dvc.yaml, each after those whose outputs it depends on."""
    stages = _declared(root)
    makers = {path: name for name, stage in stages.items() for path in _paths(stage, *OUTPUTS)}

    def makers_of(dep: str) -> list[str]:
        above = (dep, *map(str, PurePosixPath(dep).parents))  # a stage may depend on a part of another's output
        return [makers[path] for path in above if path in makers]

    needs = {
        name: [maker for dep in stage.get("deps", []) for maker in makers_of(dep)] for name, stage in stages.items()
    }
    return list(TopologicalSorter(needs).static_order())


def recorded_files(root: Path) -> list[str]:
    """What a commit must hold beside tracked files to be what ran: definition, parameters, code and small outputs."""
    stages = _declared(root).values()
    named = {path for stage in stages for path in _paths(stage, "deps", *OUTPUTS)}
    return sorted({"dvc.yaml", "dvc.lock", "params.yaml", *named})


def differing(definition: bytes, lock: bytes, contents: Mapping[str, bytes], places: Sequence[str]) -> list[str]:
    """Stages' inputs and outputs at or below `places` whose `contents` are not what the stages read and wrote.

    That is, whose hash is not the one that `lock`, the text of a dvc.lock, has wherever it names them; `definition` is
    that of the dvc.yaml beside it. A lock that was caught half written names nothing, or too little.
    """
    stages, ran = yaml.safe_load(definition)["stages"], _recorded(lock)
    hashes: dict[str, set[str | None]] = {path: set() for one in stages.values() for path in _paths(one, *OUTPUTS)}
    for name in stages:
        for path, digest in (item for key in ("deps", "outs") for item in ran.get((name, key), {}).items()):
            hashes.setdefault(path, set()).add(digest)
    looked_at = [path for path in hashes if any(PurePosixPath(path).is_relative_to(place) for place in places)]
    return sorted(path for path in looked_at if hashes[path] != {_digest(path, contents)})


def dependency(lock: bytes, stage: str, path: str) -> str | None:
    """The hash of what a stage read at `path`, by the text of a dvc.lock; None where it names none, or is damaged."""
    return _recorded(lock).get((stage, "deps"), {}).get(path)


def _recorded(lock: bytes) -> dict[tuple[str, str], dict[str, str | None]]:
    """By the text of a dvc.lock, paths and hashes of each stage's `deps` and `outs`; nothing where it is damaged."""
    try:
        return {
            (name, key): {entry["path"]: entry.get("md5") for entry in stage.get(key, [])}
            for name, stage in yaml.safe_load(lock)["stages"].items()
            for key in ("deps", "outs")
        }
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}


def edited(root: Path) -> list[str]:
    """Code, parameters and data that are no longer what the stages ran with, by dvc.lock. Raises `StageError`."""
    _mend(root)
    code, lines = _dvc(root, ["status", "--json"], lambda line: None, None)
    found = next((line for line in reversed(lines) if line.startswith("{")), "")  # DVC may warn of something else
    if code or not found:
        raise StageError("dvc status", _complaint(lines) or "it said nothing", "Mend that and run again")
    stages = [part for parts in json.loads(found).values() for part in parts if isinstance(part, dict)]
    changed: set[str] = set()
    for path, how in (item for part in stages for item in part.get("changed deps", {}).items()):
        changed |= {f"{path}: {key}" for key in how} if isinstance(how, dict) else {path}
    return sorted(changed)


def _digest(path: str, contents: Mapping[str, bytes]) -> str:
    """DVC's hash of a file, or of the folder with all that lies below it."""

    def md5(content: bytes) -> str:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    if path in contents:
        return md5(contents[path])
    below = sorted(name for name in contents if name.startswith(f"{path}/"))
    files = [{"md5": md5(contents[name]), "relpath": name.removeprefix(f"{path}/")} for name in below]
    return md5(json.dumps(files).encode()) + ".dir"  # the text that DVC keeps of a folder


def run_stage(root: Path, name: str, on_line: Callable[[str], None], env: Mapping[str, str] | None = None) -> StageRun:
    """`dvc repro` this one stage, handing each line of its output to `on_line`. Raises `StageError`."""
    started = time.perf_counter()
    _mend(root)
    with _lock_kept(root / "dvc.lock"):
        code, lines = _dvc(root, ["repro", "--single-item", name], on_line, env)
        if code:
            raise _failure(name, code, lines)
    skipped = any("didn't change, skipping" in line or "is cached - skipping run" in line for line in lines)
    return StageRun(name=name, ran=not skipped, seconds=time.perf_counter() - started)


def push(root: Path, on_line: Callable[[str], None], env: Mapping[str, str] | None = None) -> Pushed:
    """Send what the DVC remote lacks of data and models. Raises `StageError`."""
    started = time.perf_counter()
    _mend(root)
    code, lines = _dvc(root, ["push"], on_line, env)
    if code:
        reason = _complaint(lines) or "it said nothing"
        error = StageError("dvc push", reason, "See that the store answers (`resflow doctor`), then run it again")
        error.retryable = True
        raise error
    pushed = re.search(r"(\d+) files? pushed", "\n".join(lines))
    return Pushed(files=int(pushed[1]) if pushed else 0, seconds=time.perf_counter() - started)


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


@contextmanager
def worktree(root: Path, commit: str, params_text: str) -> Iterator[Path]:
    """A second work tree of `commit` with its own params.yaml, sharing DVC's cache; removed at the end.

    Experiments run there, so that the user's files stay as they are. That of a killed process is removed by the next.
    Given is the project's folder in it, which may lie below that of the repository. Raises `StageError`.
    """
    cache = _cache(root)
    folder = root / RUN_TREES / f"{os.getpid()}-{time.time_ns()}"
    with _worktree_kept(root, folder):
        _git(root, "worktree", "add", "--quiet", "--detach", str(folder), commit)
        place = folder / in_git(root)[1]
        (place / "params.yaml").write_text(params_text)
        local = root / ".dvc" / "config.local"
        if local.is_file():
            shutil.copy(local, place / ".dvc" / "config.local")
        _dvc(place, ["cache", "dir", "--local", cache], lambda line: None, None)
        # what the last run made, else every stage with an output that DVC does not cache would run again
        _dvc(place, ["checkout", "--quiet", "--allow-missing"], lambda line: None, None)
        yield place


def in_git(root: Path) -> tuple[Path, Path]:
    """The folder of the git repository of a project, and where in it the project lies. Raises `StageError`."""
    top, prefix = _git(root, "rev-parse", "--show-toplevel", "--show-prefix").split("\n")[:2]
    return Path(top), Path(prefix)


def _cache(root: Path) -> str:
    """Where DVC keeps what stages made: .dvc/cache, or what any of the user's settings of DVC names instead."""
    code, lines = _dvc(root, ["cache", "dir"], lambda line: None, None)
    folders = [line for line in lines if Path(line).is_absolute()]  # DVC may warn of something else around it
    if code or not folders:
        raise StageError("dvc cache dir", _complaint(lines) or "it named no folder", "Mend that and run again")
    return folders[-1]


@contextmanager
def _worktree_kept(root: Path, folder: Path) -> Iterator[None]:
    """Hold a lock that says the work tree is in use, and remove it in the end. First remove those that nobody holds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    mine = FileLock(folder.with_suffix(".lock"))
    with FileLock(folder.parent / "lock"):
        for other in filter(Path.is_dir, folder.parent.iterdir()):
            with suppress(Timeout), FileLock(other.with_suffix(".lock"), timeout=0):
                _remove_worktree(root, other)
        mine.acquire()
    try:
        yield
    finally:
        _remove_worktree(root, folder)
        mine.release()


def _remove_worktree(root: Path, folder: Path) -> None:
    # twice: git holds one locked that was never finished; where git knows of none, the files go all the same
    subprocess.run(["git", "worktree", "remove", "--force", "--force", str(folder)], cwd=root, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)


def _declared(root: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load((root / "dvc.yaml").read_text())["stages"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise SetupError(str(root / "dvc.yaml"), f"cannot be read ({reason})", "Run `git checkout dvc.yaml`") from error


def _paths(stage: Mapping[str, Any], *keys: str) -> list[str]:
    entries = [entry for key in keys for entry in stage.get(key, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def _dvc(
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
        dvc = psutil.Process(process.pid)
        for one in _commands(dvc) or [dvc]:
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


def _complaint(lines: list[str]) -> str:
    """The last error of DVC's own."""
    return next((line for line in reversed(lines) if line.startswith("ERROR")), "").removeprefix("ERROR: ")


@contextmanager
def _lock_kept(lock: Path) -> Iterator[None]:
    """DVC writes dvc.lock in place: where that failed, on a full disk or in a kill, put back what was there.

    Not after other failures: another DVC command may have written its own results meanwhile.
    """
    copy = _copy(lock, os.getpid())  # made while there is room: renaming needs none
    if lock.exists():
        write(copy, lock.read_bytes())
    try:
        yield
    except BaseException as error:
        if lock.exists() and ("[Errno" in str(error) or not _is_lock(lock)):
            if copy.exists():
                copy.replace(lock)
            else:
                lock.unlink()
        raise
    finally:
        copy.unlink(missing_ok=True)


def _copy(lock: Path, pid: int | str) -> Path:
    return lock.parent / ".resflow" / f"{lock.name}.{pid}"


def _mend(root: Path) -> None:
    """What a kill has left half written, which DVC then cannot read: it writes dvc.lock and .dvc/tmp/rwlock in place.

    The former is put back as a process that was killed has kept it; the latter, of who is at work, is made anew.
    """
    lock, tmp = root / "dvc.lock", root / ".dvc" / "tmp"
    copies = [path for path in lock.parent.glob(f".resflow/{lock.name}.*") if _is_left(path)]

    def torn() -> list[Path]:
        readable = {lock: _is_lock, tmp / "rwlock": _is_json}
        return [path for path, reads in readable.items() if path.exists() and not reads(path)]

    if torn():
        tmp.mkdir(exist_ok=True)
        with (tmp / "lock").open("a") as whole, (tmp / "rwlock.lock").open("a") as guard:
            if not (locked(whole) and locked(guard)):
                return  # a DVC command is writing it
            for path in torn():
                if path != lock:
                    path.unlink()
                elif copies:
                    max(copies, key=lambda copy: copy.stat().st_mtime).replace(lock)
    for copy in copies:
        copy.unlink(missing_ok=True)


def _is_left(copy: Path) -> bool:
    """Whether the process is no more that made it."""
    pid = copy.suffix.removeprefix(".")
    return pid.isdigit() and not psutil.pid_exists(int(pid))


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _is_lock(path: Path) -> bool:
    try:
        return "stages" in yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, TypeError):
        return False


def _failure(name: str, code: int, lines: list[str]) -> StageError:
    said = next((line.removeprefix(f"{name}: ") for line in reversed(lines) if line.startswith(f"{name}: ")), None)
    complaint = _complaint(lines) or f"exit code {code}"
    retryable = f"exited with {RETRYABLE}" in complaint
    where, _, rest = (said or "").partition(": ")
    problem, _, mend = rest.rpartition(". ")
    if said and problem:
        error = StageError(f"{name}: {where}", problem, mend)
    elif "locked" in complaint or "is busy" in complaint or "blocked" in complaint:
        mend = "Wait for it to end; where none runs, delete .dvc/tmp/rwlock"
        error = StageError(name, f"another DVC command is running ({complaint})", mend)
    elif "No space left" in complaint:
        error = StageError(name, complaint, "Free disk space and run again")
    elif any("dvc.lock' validation failed" in line or "dvc.lock' is invalid" in line for line in lines):
        error = StageError(name, "dvc.lock is damaged", "Run `git checkout dvc.lock`, or delete it, and run again")
    else:
        error = StageError(name, complaint, "Its output is above")
    error.retryable = retryable
    return error


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise StageError(f"git {arguments[0]}", done.stderr.strip(), "Mend that and run again")
    return done.stdout
