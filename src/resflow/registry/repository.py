"""Git, as the registry needs it: one folder, plain commands, errors that say how to mend them.

Nothing here changes a branch, the index or the work tree. What tags mean is `tags`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from resflow.errors import RegistryError, SetupError
from resflow.files import explained

__all__ = ["OWN_EMAIL", "OWN_NAME", "Repository", "mapping"]

OWN_NAME, OWN_EMAIL = "resflow", "resflow@localhost"
WAIT_SECONDS = 60.0
"""How long one process waits for another that is registering."""


class Repository:
    """Runs git in one folder. Raises `RegistryError` where that is no repository, `SetupError` without git."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if not root.is_dir():
            raise RegistryError(str(root), "is no folder", "Run resflow in the folder of the project")
        found = self.git("rev-parse", "--git-common-dir", "--show-prefix", "--is-inside-work-tree").split("\n")
        self.common = (root / found[0]).resolve()
        self.prefix, self.has_work_tree = found[1], found[-1] == "true"
        self.folder = self.prefix.rstrip("/")

    def git(
        self, *arguments: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None, strip: bool = True
    ) -> str:
        done = self._run(arguments, stdin, environment)
        if done.returncode:
            raise _refusal(self.root, arguments, done.stderr.decode(errors="replace"))
        text = done.stdout.decode(errors="replace")
        return text.rstrip("\n") if strip else text

    def try_git(self, *arguments: str, environment: Mapping[str, str] | None = None) -> str | None:
        done = self._run(arguments, b"", environment)
        return None if done.returncode else done.stdout.decode(errors="replace").rstrip("\n")

    def _run(
        self, arguments: Sequence[str], stdin: bytes = b"", environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        # A git hook that starts resflow sets GIT_DIR and GIT_INDEX_FILE, which GTO does not look at.
        hidden = {"GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_PREFIX", "GIT_COMMON_DIR", "LANGUAGE"}
        inherited = {key: value for key, value in os.environ.items() if key not in hidden}
        fixed = {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_LITERAL_PATHSPECS": "1"}
        try:
            return subprocess.run(
                ["git", *arguments],
                cwd=self.root,
                input=stdin,
                env=inherited | fixed | dict(environment or {}),
                capture_output=True,
                check=False,
            )
        except FileNotFoundError as error:
            raise SetupError("git", "is not installed, or not on PATH", "Install git and run again") from error

    def head(self) -> str:
        if not self.has_work_tree:
            raise RegistryError(str(self.root), "is a bare repository, without files", "Run resflow in a clone of it")
        head = self.try_git("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        if head is None:
            mend = "Commit first: `git add -A && git commit -m 'First commit'`"
            raise RegistryError(str(self.root), "the git repository has no commit yet", mend)
        return head

    def commit(self, revision: str) -> str:
        found = self.try_git("rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}")
        if found is None:
            mend = "Fetch it: `git fetch --tags`, in a shallow clone `git fetch --unshallow --tags`"
            raise RegistryError(str(self.root), f"there is no commit {revision}", mend)
        return found

    def identity(self) -> tuple[str, dict[str, str]]:
        """The author, and the environment that gives git one where it has none."""
        strict = ("-c", "user.useConfigOnly=true", "var")  # or git makes one up from the host's name
        author = self.try_git(*strict, "GIT_AUTHOR_IDENT")
        if author and self.try_git(*strict, "GIT_COMMITTER_IDENT"):
            return author.rsplit(" ", 2)[0], {}
        roles = ("AUTHOR", "COMMITTER")
        names = {f"GIT_{role}_NAME": OWN_NAME for role in roles}
        return OWN_NAME, names | {f"GIT_{role}_EMAIL": OWN_EMAIL for role in roles}

    def tree(self, index: Path, extra: Sequence[str]) -> str:
        """Write the tree of tracked files and `extra`, using `index`, a file that does not exist yet."""
        environment = {"GIT_INDEX_FILE": str(index)}
        own = self.root / self.git("rev-parse", "--git-path", "index")
        if own.is_file():
            # With the user's index as the start, unchanged files are not read again, files that were added but never
            # committed count, and a sparse checkout stays whole. copy2: git compares the index's time with the files'.
            shutil.copy2(own, index)
        else:
            self.git("read-tree", "HEAD", environment=environment)
        quiet = ("-c", "core.splitIndex=false", "-c", "core.fsmonitor=false", "-c", "core.safecrlf=false")
        self.git(*quiet, "add", "--update", environment=environment)
        paths = self._not_ignored([path for path in extra if os.path.lexists(self.root / path)], environment)
        if paths:
            self.git(*quiet, "add", "--", *paths, environment=environment)
        return self.git("write-tree", environment=environment)

    def _not_ignored(self, paths: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        plain = {**environment, "GIT_LITERAL_PATHSPECS": "0"}  # the only pathspecs that check-ignore has
        asked = b"\0".join(os.fsencode(path) for path in paths)
        listed = self._run(["check-ignore", "--stdin", "-z"], asked, plain).stdout if paths else b""
        ignored = {os.fsdecode(path) for path in listed.split(b"\0")}
        return [path for path in paths if path not in ignored]

    def blob(self, commit: str, path: str) -> str | None:
        """The id of the file's content; None where the commit lacks it."""
        return self.try_git("rev-parse", "--verify", "--quiet", f"{commit}:{self.prefix}{path}")

    def blobs(self, commits: Sequence[str], path: str) -> list[str | None]:
        """The same for many commits at once."""
        asked = "".join(f"{commit}:{self.prefix}{path}\n" for commit in commits)
        answers = self.git("cat-file", "--batch-check=%(objectname)", stdin=asked.encode()).split("\n")
        return [None if " " in answer else answer for answer in answers] if commits else []

    def read(self, commit: str, path: str) -> bytes | None:
        done = self._run(["cat-file", "blob", f"{commit}:{self.prefix}{path}"])
        return None if done.returncode else done.stdout

    def tree_of(self, commit: str | None, path: str) -> Any:
        """A YAML or JSON file of a commit, parsed; None where it is missing or damaged."""
        content = self.read(commit, path) if commit else None
        try:
            return yaml.safe_load(content) if content else None
        except yaml.YAMLError:
            return None

    def branches(self, commit: str) -> tuple[str, ...]:
        """Local and remote branches whose history holds `commit`."""
        where = (f"--contains={commit}", "refs/heads", "refs/remotes")
        names = self.git("for-each-ref", "--format=%(refname:lstrip=2)", *where).split("\n")
        return tuple(name for name in names if name and not name.endswith("/HEAD"))

    def on_a_branch(self, commit: str) -> str | None:
        """`commit`, or the nearest of its first parents that a branch holds; None where none holds any."""
        beside = self.git("rev-list", "--first-parent", commit, "--not", "--branches", "--remotes")
        start = f"{beside.split()[-1]}^" if beside else commit
        return self.try_git("rev-parse", "--verify", "--quiet", start)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time, over all work trees of the repository."""
        from filelock import FileLock, Timeout

        path = self.common / "resflow-registry.lock"
        lock = FileLock(path, timeout=WAIT_SECONDS)
        with explained(path):
            try:
                lock.acquire()
            except Timeout as error:  # an OSError, too
                raise RegistryError(str(path), "another process is registering", "Wait for it and run again") from error
        try:
            yield
        finally:
            lock.release()


def _refusal(root: Path, arguments: Sequence[str], text: str) -> RegistryError:
    """What git said, as an error that says how to mend it."""
    if "not a git repository" in text:
        mend = "Clone the project with git, or make it one: `git init && git add -A && git commit -m 'First commit'`"
        return RegistryError(str(root), "is not in a git repository", mend)
    if "dubious ownership" in text:
        return RegistryError(
            str(root),
            "belongs to another user",
            f"Allow git to use it: git config --global --add safe.directory {root}",
        )
    lines = [line for line in text.strip().splitlines() if line.startswith(("fatal:", "error:"))]
    said = (lines or text.strip().splitlines() or ["no message"])[0]
    command = next((word for word in arguments if not word.startswith("-") and "=" not in word), "")
    return RegistryError(str(root), f"git {command} failed ({said})", "Mend it with git and run again")


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` where it is a mapping, else an empty one: what is read from YAML may be anything."""
    return value if isinstance(value, Mapping) else {}
