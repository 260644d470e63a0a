"""What a run tells at its end: on the terminal, and as artifacts in the Prefect UI."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from resflow.pipeline import StageRun
from resflow.stages.paths import METRICS
from resflow.storage import Published
from tasks.release import Registered

__all__ = ["Release", "Summary", "show"]


@dataclass(frozen=True, kw_only=True)
class Release:
    """What was registered, pushed and published."""

    registered: Registered
    pushed: int
    """Files sent to the DVC remote."""
    published: Published
    promoted: bool
    withheld: bool
    """Whether it would have been promoted, had production been measured on the same test data."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The outcome of one run of the pipeline."""

    accuracy: float
    """On the test split, as a fraction."""
    parameters: int
    stages: Sequence[StageRun]
    release: Release | None

    def rows(self) -> list[tuple[str, str]]:
        """What happened, as pairs of a name and a line of text."""
        rows = [("test accuracy", f"{self.accuracy:.2%}"), ("parameters", f"{self.parameters:,}")]
        for stage in self.stages:
            rows.append((stage.name, f"{stage.seconds:.1f} s" if stage.ran else "up to date, nothing ran"))
        if self.release:
            rows += self._released(self.release)
        return rows

    def _released(self, release: Release) -> list[tuple[str, str]]:
        version, identity = release.registered.version, release.registered.identity
        name = f"{version.name}@{version.version}"
        made = "registered" if version.created else "registered before, nothing new"
        mine = f", made under the name of {identity}: git has none of yours" if identity == "resflow" else ""
        published = release.published
        sent = f"{published.uploaded_bytes / 1e6:.1f} MB" if published.created else "there before, nothing uploaded"
        files = release.pushed
        data = f"{files} file{'s'[: files != 1]}" if files else "nothing to push"
        stage = "promoted to prod" if release.promoted else ("in prod" if "prod" in version.stages else "not promoted")
        rows = [
            ("version", f"{name} ({made}; {stage}{mine})"),
            ("published", f"{published.url} ({sent})"),
            ("data pushed", data),
        ]
        if release.withheld:
            why = "its accuracy is of other test data, and says nothing against or for this version's"
            rows.append(("production", f"left as it is: {why}. `resflow models promote {name}` replaces it"))
        return rows

    def markdown(self) -> str:
        """The same as a Markdown table."""
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in self.rows())])


def show(root: Path, summary: Summary) -> None:
    """Put the summary, the metrics and a link to the bundle into the Prefect UI."""
    create_markdown_artifact(summary.markdown(), key="summary", description="What this run did")
    metrics = json.loads((root / METRICS / "evaluate.json").read_text())
    table = [{"class": name, **values} for name, values in metrics["classes"].items()]
    create_table_artifact(table, key="metrics", description=f"Test split by class; accuracy {summary.accuracy:.2%}")
    if summary.release:
        create_link_artifact(summary.release.published.url, key="bundle", description="The published bundle")
