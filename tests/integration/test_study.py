"""`resflow study` as a user runs it: killed, run again, opened; through Ray Train where workers are timed."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from tests.conftest import Project

pytestmark = pytest.mark.integration

TINY = {
    "images": 64,
    "epochs": 1,
    "seeds": 1,
    "batch_size": 16,
    "depths": [8, 14],
    "widths": [2],
    "factor_width": 2,
    "batches": [8],
    "workers": [1],
    "speed_steps": 1,
}


def test_a_study_that_was_killed_goes_on_and_ends_in_its_page(copied: Project) -> None:
    (copied.root / "tiny.yaml").write_text(yaml.safe_dump({"study": TINY}))
    command = ["resflow", "study", "--params", "tiny.yaml", "--only", "scaling", "--to", "study"]
    results = copied.root / "study/results.jsonl"
    with subprocess.Popen(
        command, cwd=copied.root, env=copied.env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("[2/"):
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, said
    kept = results.read_text()
    assert len(kept.splitlines()) >= 2

    done = copied.run(*command)
    assert f"5 trials, {len(kept.splitlines())} of which are recorded" in done.out
    assert results.read_text().startswith(kept)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert len({row["key"] for row in rows}) == len(rows) == 5
    speeds = [row["result"]["images_per_second"] for row in rows if row["asked"]["kind"] == "workers"]
    assert len(speeds) == 1
    assert speeds[0] > 0

    page = (copied.root / "study/index.html").read_text()
    assert "resflow study --params tiny.yaml --to study --only scaling" in page
