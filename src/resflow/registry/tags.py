"""GTO's tags: read with plain git, written by GTO.

Git reads them in milliseconds where importing GTO takes most of a second; the rules of reading are those of `gto
show`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from resflow.errors import RegistryError
from resflow.registry.repository import OWN_EMAIL, OWN_NAME, Repository

__all__ = ["Version", "known_versions", "next_number", "order", "wait_for_later_second", "withdrawn", "write"]

FIRST_VERSION = "v0.1.0"

# What gto.constants.tag_re matches, without "created", which GTO never writes.
WORD = r"[a-zA-Z0-9](?:[a-zA-Z0-9-/_]*[a-zA-Z0-9])?"
NUMBER = r"(?:0|[1-9][0-9]*)"
PRE_RELEASE = rf"(?:{NUMBER}|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
BUILD = r"[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*"
SEMVER = rf"v{NUMBER}\.{NUMBER}\.{NUMBER}(?:-{PRE_RELEASE}(?:\.{PRE_RELEASE})*)?(?:\+{BUILD})?"
TAG = re.compile(
    rf"(?:(?P<folder>[a-zA-Z0-9-_./]+)=)?(?P<name>{WORD})"
    rf"(?:(?:#(?P<stage>{WORD})|@(?P<version>{SEMVER}))(?P<cancel>!?)|@(?P<deprecated>deprecated))"
    r"(?:#(?P<counter>[0-9]+))?"
)


@dataclass(frozen=True, kw_only=True)
class Version:
    """One registered version of a model."""

    name: str
    version: str
    commit: str
    message: str
    created_at: datetime
    stages: tuple[str, ...] = ()
    created: bool = field(default=False, compare=False)
    """Whether this very call made it."""

    @property
    def prefix(self) -> str:
        """Of its bundle in the store."""
        return f"models/{self.name}/{self.version}"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, kw_only=True)
class _Tag:
    """A tag that GTO wrote."""

    name: str
    version: str | None
    stage: str | None
    cancel: bool
    deprecated: bool
    counter: int
    commit: str
    time: int
    message: str


def _tags(repo: Repository) -> list[_Tag]:
    """GTO's tags of the project, oldest first. Others are passed over, as are lightweight tags and renamed ones."""
    fields = (
        "refname:lstrip=2",
        "tag",
        "*objecttype",
        "*objectname",
        "taggerdate:unix",
        "contents:subject",
        "contents:body",
    )
    record = "%00".join(f"%({name})" for name in fields) + "%00"
    values = repo.git("for-each-ref", f"--format={record}", "refs/tags", strip=False).split("\0")
    records = (values[at : at + len(fields)] for at in range(0, len(values) - len(fields), len(fields)))
    tags = [tag for tag in (_tag(repo.folder, *record) for record in records) if tag]
    return sorted(tags, key=lambda tag: (tag.time, tag.counter))


def _tag(folder: str, ref: str, tag: str, kind: str, commit: str, when: str, subject: str, body: str) -> _Tag | None:
    ref = ref.lstrip("\n")
    match = TAG.fullmatch(ref)
    if match is None or (match["folder"] or "") != folder or ref != tag or kind != "commit" or not when:
        return None
    return _Tag(
        name=match["name"],
        version=match["version"],
        stage=match["stage"],
        cancel=match["cancel"] == "!",
        deprecated=bool(match["deprecated"]),
        counter=int(match["counter"] or 0),
        commit=commit,
        time=int(when),
        message="\n\n".join(part for part in (subject.strip(), body.strip()) if part),
    )


def known_versions(repo: Repository, name: str | None) -> list[Version]:
    """The registered versions of one model or of all, each model's newest first."""
    found = _tags(repo)
    names = sorted({tag.name for tag in found}) if name is None else [name]
    return [version for each in names for version in _replay(each, [tag for tag in found if tag.name == each])]


def _replay(name: str, tags: Sequence[_Tag]) -> list[Version]:
    """What a model's tags, oldest first, amount to: the rules of `gto show`."""
    if tags and tags[-1].deprecated:
        return []
    registered: dict[str, _Tag] = {}
    for tag in tags:
        if tag.version and tag.cancel:
            registered.pop(tag.version, None)
        elif tag.version:
            registered[tag.version] = tag
    commits = {tag.commit for tag in registered.values()}
    assigned: dict[str, dict[str, None]] = {}  # stage to its commits, the newest assignment last
    for tag in tags:
        if tag.stage and tag.commit in commits:
            assigned.setdefault(tag.stage, {}).pop(tag.commit, None)
            if not tag.cancel:
                assigned[tag.stage][tag.commit] = None
    return [
        Version(
            name=name,
            version=number,
            commit=tag.commit,
            message=tag.message,
            created_at=datetime.fromtimestamp(tag.time, UTC),
            stages=tuple(sorted(stage for stage, held in assigned.items() if held and [*held][-1] == tag.commit)),
        )
        for number, tag in sorted(registered.items(), key=lambda item: order(item[0]), reverse=True)
    ]


def order(number: str) -> tuple[Any, ...]:
    """Semantic versioning's order: a pre-release comes before its release."""
    core, _, rest = number.removeprefix("v").partition("+")[0].partition("-")
    parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in rest.split(".")]
    return (*(int(part) for part in core.split(".")), not rest, parts)


def withdrawn(repo: Repository, name: str) -> dict[str, str]:
    """Version to commit of what was deregistered, or registered before the model was deprecated."""
    known = {version.version for version in known_versions(repo, name)}
    numbered = {tag.version: tag.commit for tag in _tags(repo) if tag.name == name and tag.version}
    return {number: commit for number, commit in numbered.items() if number not in known}


def next_number(repo: Repository, name: str) -> str:
    """v0.1.0, or the highest number so far with its last part raised by one, as GTO does it."""
    used = [tag.version for tag in _tags(repo) if tag.name == name and tag.version]
    if not used:
        return FIRST_VERSION
    major, minor, patch, released, _ = order(max(used, key=order))
    return f"v{major}.{minor}.{patch + released}"


def wait_for_later_second(repo: Repository, name: str, stage: str) -> None:
    """Tags are dated in whole seconds, and of two in the same second nobody can tell which is the newer."""
    newest = max((tag.time for tag in _tags(repo) if tag.name == name and tag.stage == stage), default=0)
    ahead = newest + 1 - time.time()
    if ahead > 5:
        when = datetime.fromtimestamp(newest, UTC).isoformat()
        problem = f"the last assignment of stage {stage!r} is dated {when}, in the future"
        raise RegistryError(name, problem, "Set this machine's clock right, or wait until then")
    if ahead > 0:
        time.sleep(ahead)


def write(action: str, repo: Repository, name: str, **arguments: Any) -> None:
    """Have GTO write one tag, under git's identity or resflow's own."""
    import gto.api

    who = repo.try_git("var", "GIT_COMMITTER_IDENT", environment=repo.identity()[1]) or ""
    match = re.fullmatch(r"(.*) <(.*)> \d+ \S+", who)
    author, email = match.groups() if match else (OWN_NAME, OWN_EMAIL)
    full = f"{repo.folder}:{name}" if repo.folder else name
    top = repo.git("rev-parse", "--show-toplevel") if repo.has_work_tree else str(repo.common)
    try:
        getattr(gto.api, action)(top, full, author=author, author_email=email, **arguments)
    except Exception as error:  # GTO lets the errors of two git libraries through
        problem = f"GTO could not {action} ({str(error).strip() or type(error).__name__})"
        raise RegistryError(name, problem, f"See `gto show {full}` and `git tag --list`") from error
