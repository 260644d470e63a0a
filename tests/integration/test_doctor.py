"""`resflow doctor` on machines that are well, lack something optional, or lack something needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from resflow import doctor, processes
from resflow.doctor import Finding, examine
from resflow.errors import SetupError
from resflow.storage import Endpoint
from tests.conftest import Project, make_project, stop_store
from tests.integration.ray_nodes import head

pytestmark = pytest.mark.integration

WORDS = (
    "Python packages disk user project git git-identity repository params.yaml cores store credentials Prefect Ray npm "
    "GPU"
)
NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project in which nothing ran, and a home; a test that spoils it puts it right again."""
    project = make_project(tmp_path_factory.mktemp("doctor") / "project", tmp_path_factory.mktemp("home"))
    yield project
    stop_store(project)


@pytest.fixture(autouse=True)
def machine(made: Project, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing of the caller's about clusters, servers and git, nor of the tests before."""
    monkeypatch.setenv("HOME", str(made.home))
    for name in [name for name in os.environ if name.startswith(("RAY_", "PREFECT_", "AWS_", "GIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    return monkeypatch


def found(start: Path) -> dict[str, Finding]:
    return {one.what: one for one in examine(start)}


def bad(findings: dict[str, Finding]) -> list[str]:
    assert all(one.ok or one.mend for one in findings.values())
    return [what for what, one in findings.items() if not one.ok and not one.optional]


def test_a_fresh_clone_is_well_and_what_is_optional_is_a_note(made: Project) -> None:
    findings = found(made.root)
    assert [what.replace(" ", "-") for what in findings] == WORDS.split()
    assert bad(findings) == []
    assert not findings["store"].ok
    assert "`resflow run` starts it" in findings["store"].finding


def test_the_command_shows_a_line_for_each_finding_and_no_secret(made: Project) -> None:
    made.run("resflow", "store", "start")
    done = made.run("resflow", "doctor")
    made.run("resflow", "store", "stop")
    lines = done.out.splitlines()
    assert len(lines) == 1 + len(WORDS.split())
    assert {line.split()[0] for line in lines[1:]} <= {"ok", "note"}
    assert any(line.startswith("ok    store         embedded, answers at http://127.0.0.1:") for line in lines)
    settings = json.loads((made.root / ".resflow" / "store.json").read_text())
    assert not any(settings[key] in done.out for key in ("access_key", "secret_key"))


def test_the_command_ends_with_code_1_where_something_needed_is_bad(made: Project, tmp_path: Path) -> None:
    elsewhere = Project(tmp_path, made.home, {"PYTHONPATH": made.env()["PYTHONPATH"]})
    done = elsewhere.run("resflow", "doctor", code=1)
    line = next(line for line in done.out.splitlines() if line.startswith("bad"))
    assert "is not in a resflow project" in line
    assert line.endswith("Change into a clone of the project")


def test_a_user_without_a_name_runs_stages_and_is_told_what_dvc_asks_for(made: Project) -> None:
    """As in a container under an id of its own."""
    nameless = ["unshare", "--user", "--map-user=12345", "--map-group=12345", "env"]
    nameless += [f"--unset={name}" for name in ("LOGNAME", "USER", "LNAME", "USERNAME")]
    if subprocess.run([*nameless, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not permitted here")
    stage = "from pathlib import Path; from resflow import pipeline; pipeline.run_stage(Path(), 'fetch', print)"
    made.run(*nameless, "python", "-c", stage)
    assert "Set LOGNAME to any name" in made.run(*nameless, "resflow", "doctor").out


def test_bad_parameters_are_told(made: Project, tmp_path: Path) -> None:
    shutil.copytree(made.root, tmp_path / "project", symlinks=True)
    project = Project(tmp_path / "project", made.home)
    project.edit(train__lr=-1)
    findings = found(project.root)
    assert bad(findings) == ["params.yaml"]
    assert "parameter 'train.lr' is -1" in findings["params.yaml"].finding


def test_cores_that_training_leaves_or_lacks_are_a_note(made: Project, machine: pytest.MonkeyPatch) -> None:
    machine.setattr(processes, "cores", lambda: 4)
    given = (made.root / "params.yaml").read_text()

    def told(workers: int, threads: int) -> Finding:
        made.edit(train__device="cpu", train__num_workers=workers, train__threads=threads, train__batch_size=240)
        return found(made.root)["cores"]

    try:
        fitting, crowded, few, many = told(2, 2), told(2, 4), told(1, 2), told(8, 1)
        machine.setenv("RAY_ADDRESS", NOBODY)
        elsewhere = told(2, 4)
    finally:
        (made.root / "params.yaml").write_text(given)
    assert fitting.ok
    assert fitting.finding == "4; training takes 4 (train.num_workers 2, train.threads 2)"
    assert crowded.finding.startswith("4; training takes 8 (train.num_workers 2")
    assert "train.threads 2, with other bits" in crowded.mend
    assert few.mend == "Try whether train.threads 4 is faster; it gives other bits"
    assert many.mend.startswith("Lower train.num_workers")
    assert not any(one.ok for one in (crowded, few, many))
    assert all(one.optional for one in (crowded, few, many))
    assert elsewhere.ok


def test_without_git_history_the_repository_is_bad(made: Project) -> None:
    (made.root / ".git").rename(made.root / ".nogit")
    findings = found(made.root)
    (made.root / ".nogit").rename(made.root / ".git")
    assert bad(findings) == ["repository"]
    assert "git init" in findings["repository"].mend
    assert not findings["git identity"].ok


def test_without_a_name_in_git_it_says_whose_is_used(made: Project) -> None:
    made.git("config", "--unset", "user.name")
    findings = found(made.root)
    made.git("config", "user.name", "Ada")
    assert bad(findings) == []
    assert "under resflow's own" in findings["git identity"].finding


def test_another_store_is_asked_with_these_keys_for_the_bucket(
    made: Project, store: tuple[Path, Endpoint], machine: pytest.MonkeyPatch
) -> None:
    for name, value in store[1].environment().items():
        machine.setenv(name, value)
    findings = found(made.root)
    assert bad(findings) == []
    assert findings["store"].finding.endswith("answers with these keys and has the bucket resflow")
    machine.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    findings = found(made.root)
    assert bad(findings) == ["store"]
    assert "refuses the keys" in findings["store"].finding


def test_servers_that_are_named_but_do_not_answer_are_bad(made: Project) -> None:
    named = {
        "AWS_ENDPOINT_URL_S3": f"http://{NOBODY}",
        "AWS_ACCESS_KEY_ID": "only this one",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PREFECT_API_URL": f"http://ada:secret@{NOBODY}/api",
        "RAY_ADDRESS": NOBODY,
    }
    # in a process of its own: Prefect's settings stay as they were when a test before this one has loaded them
    done = made.run("resflow", "doctor", code=1, **named)
    findings = {line.split()[1]: line for line in done.out.splitlines() if line.startswith("bad")}
    assert list(findings) == ["store", "credentials", "Prefect", "Ray"]
    assert "AWS_SECRET_ACCESS_KEY is not" in findings["credentials"]
    assert "nothing answers there" in findings["Ray"]
    assert "secret" not in findings["Prefect"]


def test_a_cluster_is_asked_for_and_so_is_its_token(made: Project, machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setenv("HOME", str(tmp_path))
    with head(tmp_path) as port:
        machine.setenv("RAY_ADDRESS", f"http://127.0.0.1:{port}")
        assert "is not HOST:PORT, auto or local" in found(made.root)["Ray"].finding
        machine.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        findings = found(made.root)
        assert "holds no token" in findings["Ray"].finding
        assert "Ray token" not in findings
        machine.setenv("RAY_AUTH_TOKEN", "very secret")
        findings = found(made.root)
    assert bad(findings) == []
    assert "token from RAY_AUTH_TOKEN" in findings["Ray"].finding
    assert "very secret" not in str(findings)


def test_keys_that_others_can_read_are_bad(made: Project) -> None:
    keys = made.root / ".resflow" / "store.json"
    keys.parent.mkdir(exist_ok=True)
    existed = keys.exists()
    keys.touch()
    keys.chmod(0o644)
    findings = found(made.root)
    keys.chmod(0o600)
    if not existed:
        keys.unlink()
    assert "credentials" in bad(findings)
    assert findings["credentials"].mend == f"`chmod 600 {keys}`"


def test_a_file_that_cannot_be_looked_at_is_one_finding(tmp_path: Path) -> None:
    """As where a token goes while the doctor looks."""
    with pytest.raises(SetupError, match=r"cannot be looked at \(No such file or directory\)"):
        doctor._alone(tmp_path / "gone")


def test_a_token_of_ray_that_others_can_read_is_a_note(made: Project, machine: pytest.MonkeyPatch) -> None:
    token = made.home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("very secret")
    token.chmod(0o640)
    findings = found(made.root)
    machine.setenv("RAY_AUTH_TOKEN", "another")
    assert "Ray token" not in found(made.root)
    machine.delenv("RAY_AUTH_TOKEN")
    token.chmod(0o600)
    mended = found(made.root)["Ray token"]
    shutil.rmtree(token.parent)
    assert bad(findings) == []
    note = Finding("Ray token", False, True, f"{token}: can be read by other users", f"`chmod 600 {token}`")
    assert findings["Ray token"] == note
    assert mended.ok
    assert "secret" not in str([findings, mended])
