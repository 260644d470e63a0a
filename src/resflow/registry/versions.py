"""What a caller asks of versions and stages.

The commit that holds what ran, its registration, its promotion, and finding it again.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from resflow.errors import RegistryError
from resflow.registry.repository import Repository, mapping
from resflow.registry.tags import Version, known_versions, next_number, wait_for_later_second, withdrawn, write

__all__ = [
    "Artifact",
    "Snapshot",
    "artifact",
    "check",
    "find",
    "production",
    "promote",
    "read",
    "register",
    "resolve",
    "snapshot",
    "versions",
]

LOCK_FILE = "dvc.lock"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A commit that holds what ran."""

    commit: str
    made: bool
    """False where the branch's own commit holds it already."""
    identity: str
    """`Name <email>` of the author as git has it; `resflow` where git has none."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """The model that dvc.yaml declares."""

    name: str
    path: str


def artifact(root: Path) -> Artifact:
    """The artifact of type `model` in dvc.yaml. Raises `RegistryError`."""
    path = root / "dvc.yaml"
    try:
        tree = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise RegistryError(
            str(path), f"cannot be read ({error})", "Run resflow in the folder of the project"
        ) from error
    for name, entry in mapping(mapping(tree).get("artifacts")).items():
        if mapping(entry).get("type") == "model" and mapping(entry).get("path"):
            return Artifact(name=str(name), path=str(entry["path"]))
    mend = "Declare the model there under `artifacts:`, with `path:` and `type: model`"
    raise RegistryError(str(path), "declares no artifact of type model", mend)


def check(root: Path) -> None:
    """Pass where versions can be made: in a git repository with a commit. Raises `RegistryError`, `SetupError`."""
    Repository(root).head()


def snapshot(root: Path, extra: Sequence[str] = ()) -> Snapshot:
    """A commit that holds the tracked files as they are now, and `extra`, paths below `root`.

    Of `extra`, what does not exist or is git-ignored is left out. The commit is HEAD where it holds all that;
    otherwise a child of HEAD on no branch, made through an index of its own: HEAD, branches, index and work tree stay
    as they are. Raises `RegistryError`.
    """
    repo = Repository(root)
    head = repo.head()
    author, environment = repo.identity()
    with tempfile.TemporaryDirectory(prefix="resflow-") as folder:
        tree = repo.tree(Path(folder) / "index", extra)
    if tree == repo.git("rev-parse", "HEAD^{tree}"):
        return Snapshot(commit=head, made=False, identity=author)
    message = "What ran, as resflow found it\n\nMade beside the branch because the work tree differed from its commit."
    commit = repo.git("commit-tree", tree, "-p", head, "-m", message, environment=environment)
    return Snapshot(commit=commit, made=True, identity=author)


def find(root: Path, name: str, lock: Path | bytes | None = None) -> Version | None:
    """The version of `name` whose dvc.lock equals `lock`: by default the one in the work tree."""
    repo = Repository(root)
    lock = root / LOCK_FILE if lock is None else lock
    if isinstance(lock, Path):
        if not lock.is_file():
            return None
        lock = lock.read_bytes()
    # --path: what git would store, that is after end-of-line conversion
    blob = repo.git("hash-object", "--stdin", "--path", LOCK_FILE, stdin=lock)
    return _with_lock(repo, name, blob)


def register(root: Path, name: str, commit: Snapshot | str, message: str = "") -> Version:
    """Tag `commit` as the next version of `name`, unless a version has the same dvc.lock: then return that one.

    The first version is v0.1.0; each further one raises the last number by one, as GTO itself does. A number once used
    is not used again, also where its version was deregistered. Raises `RegistryError`.
    """
    repo = Repository(root)
    sha = repo.commit(commit.commit if isinstance(commit, Snapshot) else commit)
    blob = repo.blob(sha, LOCK_FILE)
    if blob is None:
        raise RegistryError(sha[:12], f"holds no {LOCK_FILE}", "Run the pipeline first: `resflow run` or `dvc repro`")
    with repo.locked():
        known = _with_lock(repo, name, blob)
        if known:
            return known
        _refuse_withdrawn(repo, name, blob)
        number = next_number(repo, name)
        write("register", repo, name, ref=sha, version=number, message=message or f"{name} {number}")
        made = next(v for v in known_versions(repo, name) if v.version == number)
    return replace(made, created=True)


def promote(root: Path, name: str, version: str, stage: str = "prod") -> bool:
    """Make `version` of `name` the one in `stage`; False where it is already. Raises `RegistryError`."""
    repo = Repository(root)
    with repo.locked():
        chosen = _pick(repo, name, version)
        if stage in chosen.stages:
            return False
        wait_for_later_second(repo, name, stage)
        message = f"{chosen} becomes {stage}"
        # force: a version that was in the stage before may come back
        write("assign", repo, name, version=chosen.version, stage=stage, message=message, force=True)
    return True


def production(root: Path, name: str, stage: str = "prod") -> Version | None:
    """The version of `name` that is in `stage`."""
    return next((v for v in versions(root, name) if stage in v.stages), None)


def versions(root: Path, name: str | None = None) -> list[Version]:
    """The versions of one model, or of all, each model's newest first."""
    return known_versions(Repository(root), name)


def resolve(root: Path, reference: str) -> Version:
    """The version that NAME@VERSION means; VERSION may also be `latest` or a stage. Raises `RegistryError`."""
    name, _, version = reference.partition("@")
    return _pick(Repository(root), name, version or "latest")


def read(root: Path, commit: str, path: str) -> bytes:
    """A file below `root` as `commit` holds it. Raises `RegistryError`."""
    content = Repository(root).read(commit, path)
    if content is None:
        raise RegistryError(f"{commit[:12]}:{path}", "is not in that commit", "See `git ls-tree -r COMMIT` for what is")
    return content


def _with_lock(repo: Repository, name: str, blob: str) -> Version | None:
    known = known_versions(repo, name)
    locks = repo.blobs([version.commit for version in known], LOCK_FILE)
    return next((version for version, lock in zip(known, locks, strict=True) if lock == blob), None)


def _refuse_withdrawn(repo: Repository, name: str, blob: str) -> None:
    """What somebody deregistered on purpose does not come back by running again."""
    gone = withdrawn(repo, name)
    for number, lock in zip(gone, repo.blobs([*gone.values()], LOCK_FILE), strict=True):
        if lock == blob:
            mend = f"Change something and run again, or bring it back: `git tag --delete '{name}@{number}!'`"
            raise RegistryError(f"{name}@{number}", "this very model was registered before and withdrawn", mend)


def _pick(repo: Repository, name: str, version: str) -> Version:
    known = known_versions(repo, name)
    if not known:
        names = sorted({v.name for v in known_versions(repo, None)})
        mend = _nearest(name, names) if names else "Register one with `resflow run`, or fetch them: `git fetch --tags`"
        raise RegistryError(f"{name}@{version}", f"model {name!r} has no versions here", mend)
    if version == "latest":
        return known[0]
    for candidate in known:
        if version in (candidate.version, candidate.version.removeprefix("v"), *candidate.stages):
            return candidate
    choices = [*(v.version for v in known), *(stage for v in known for stage in v.stages), "latest"]
    raise RegistryError(f"{name}@{version}", "there is no such version", _nearest(version, choices))


def _nearest(wanted: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.7)
    listed = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return f"Did you mean {near[0]}? Known: {listed}" if near else f"Known: {listed}"
