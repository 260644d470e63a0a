"""Versions and stages of models as git tags, and where a version came from.

A version is a commit that holds exactly what ran, tagged `NAME@vX.Y.Z` by GTO; a stage such as `prod` is a tag
`NAME#prod#N` on the same commit. `snapshot` makes that commit beside the user's branch, `register` and `promote` tag
it, and everything else reads. All of it is keyed by the content of `dvc.lock`: doing it twice changes nothing.

    versions.py     what a caller asks of versions and stages
    lineage.py      where a version came from
    tags.py         GTO's tags, read by git and written by GTO
    repository.py   git itself

This is the only room that knows git and GTO. Running stages and pushing data is `pipeline`, publishing is `storage`.
"""

from __future__ import annotations

from resflow.registry.lineage import Lineage, lineage
from resflow.registry.tags import Version
from resflow.registry.versions import (
    Artifact,
    Snapshot,
    artifact,
    check,
    find,
    production,
    promote,
    read,
    register,
    resolve,
    snapshot,
    versions,
)

__all__ = [
    "Artifact",
    "Lineage",
    "Snapshot",
    "Version",
    "artifact",
    "check",
    "find",
    "lineage",
    "production",
    "promote",
    "read",
    "register",
    "resolve",
    "snapshot",
    "versions",
]
