"""Versions as git tags: real git and GTO, each test in a repository of its own; DVC in the last one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resflow import registry
from resflow.errors import RegistryError, SetupError

pytestmark = pytest.mark.integration

MODEL = "mnist-resnet"
DVC_YAML = f"""\
stages:
  train:
    cmd: mkdir -p models metrics && cp input.txt models/model.txt && cp input.txt metrics/train.json
    deps: [input.txt]
    params: [train]
    outs: [models/model.txt]
    metrics:
      - metrics/train.json:
          cache: false
artifacts:
  data-set: {{path: input.txt, type: data}}
  {MODEL}: {{path: models/model.txt, type: model}}
"""
DVC_LOCK = """\
schema: '2.0'
stages:
  train:
    cmd: train
    deps:
    - {{path: data/prepared, hash: md5, md5: feed.dir, size: 2}}
    - {{path: input.txt, hash: md5, md5: c0de, size: 3}}
    params:
      params.yaml: {{seed: 0, train: {{lr: 0.1, epochs: 3}}}}
    outs:
    - {{path: models/model.txt, hash: md5, md5: '{model}', size: 3}}
"""


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.rstrip("\n")


def commit_all(root: Path, message: str = "Change") -> str:
    git(root, "add", "-A")
    git(root, "-c", "user.name=Ann", "-c", "user.email=ann@example.org", "commit", "-qm", message)
    return git(root, "rev-parse", "HEAD")


def ran(root: Path, model: str) -> None:
    """Leave what a pipeline leaves that trained `model`."""
    (root / "dvc.lock").write_text(DVC_LOCK.format(model=model))
    (root / "metrics").mkdir(exist_ok=True)
    (root / "metrics/train.json").write_text(json.dumps({"accuracy": 0.99, "loss": {"train": 0.1}}))


def register(root: Path, model: str) -> registry.Version:
    ran(root, model)
    return registry.register(root, MODEL, registry.snapshot(root, ["dvc.lock", "metrics"]))


def tag(root: Path, name: str, target: str) -> None:
    git(root, "-c", "user.name=Ann", "-c", "user.email=ann@example.org", "tag", "-am", "By hand", name, target)


@pytest.fixture(autouse=True, scope="module")
def _no_git_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        roles = [f"GIT_{role}_{kind}" for role in ("AUTHOR", "COMMITTER") for kind in ("NAME", "EMAIL", "DATE")]
        for name in ("XDG_CONFIG_HOME", "EMAIL", *roles):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "params.yaml").write_text("train: {lr: 0.1, epochs: 3}\n")
    (root / "input.txt").write_text("1.0")
    (root / ".gitignore").write_text("/models/\n/timings/\n")
    commit_all(root, "First")
    return root


def state(root: Path) -> tuple[str, str, bytes, str]:
    files = {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file() and ".git" not in path.parts}
    index = (root / ".git/index").read_bytes()  # before status, which may refresh it
    return (
        str(files),
        git(root, "for-each-ref"),
        index,
        git(root, "--no-optional-locks", "status", "--porcelain=v2", "--branch"),
    )


# --- the commit that holds what ran -----------------------------------------------------------------------------------


def test_a_clean_work_tree_is_its_own_snapshot(root: Path) -> None:
    ran(root, "a")
    head = commit_all(root)
    snapshot = registry.snapshot(root, ["dvc.lock", "metrics", "no/such/file"])
    assert (snapshot.commit, snapshot.made) == (head, False)


def test_a_file_that_nobody_asked_for_leaves_the_work_tree_clean(root: Path) -> None:
    (root / "notes.txt").write_text("mine")
    assert not registry.snapshot(root).made


def test_a_touched_but_equal_file_leaves_the_work_tree_clean(root: Path) -> None:
    (root / "input.txt").write_text("2.0")
    (root / "input.txt").write_text("1.0")
    assert not registry.snapshot(root).made


def test_a_snapshot_holds_what_ran_and_touches_nothing(root: Path) -> None:
    (root / "staged.py").write_text("old")
    (root / "gone.txt").write_text("x")
    commit_all(root)
    ran(root, "a")
    (root / "params.yaml").write_text("train: {lr: 0.2, epochs: 3}\n")
    (root / "gone.txt").unlink()
    (root / "staged.py").write_text("staged")
    (root / "added.py").write_text("added")
    git(root, "add", "staged.py", "added.py")
    (root / "staged.py").write_text("what ran")
    (root / "ünï code.py").write_text("untracked code")
    (root / "notes.txt").write_text("mine")
    (root / "timings").mkdir()
    (root / "timings/train.csv").write_text("1")
    before, head = state(root), git(root, "rev-parse", "HEAD")

    snapshot = registry.snapshot(root, ["dvc.lock", "metrics", "timings", "timings/train.csv", "ünï code.py", "absent"])

    assert state(root) == before
    assert snapshot.made
    assert git(root, "rev-parse", f"{snapshot.commit}^") == head
    held = set(git(root, "ls-tree", "-rz", "--name-only", snapshot.commit).rstrip("\0").split("\0"))
    asked = {"dvc.lock", "metrics/train.json", "ünï code.py"}
    assert held == {".gitignore", "dvc.yaml", "params.yaml", "input.txt", "staged.py", "added.py"} | asked
    assert registry.read(root, snapshot.commit, "staged.py") == b"what ran"
    assert registry.read(root, snapshot.commit, "params.yaml") == b"train: {lr: 0.2, epochs: 3}\n"


def test_a_change_in_the_same_instant_as_the_commit_is_seen(root: Path) -> None:
    """Same size and time as git's index has: git rereads such files only if the index is no newer than they are."""
    git(root, "config", "core.checkStat", "minimal")
    git(root, "config", "core.trustctime", "false")
    instant = (1_700_000_000, 1_700_000_000)
    os.utime(root / "input.txt", instant)
    git(root, "update-index", "--refresh")
    (root / "input.txt").write_text("9.9")
    os.utime(root / "input.txt", instant)
    os.utime(root / ".git/index", instant)
    assert registry.read(root, registry.snapshot(root).commit, "input.txt") == b"9.9"


def test_a_detached_head_is_snapshotted_and_stays_detached(root: Path) -> None:
    git(root, "checkout", "-q", "--detach")
    version = register(root, "a")
    assert git(root, "rev-parse", "--abbrev-ref", "HEAD") == "HEAD"
    assert git(root, "rev-parse", f"{version.commit}^") == git(root, "rev-parse", "HEAD")


def test_a_linked_work_tree_shares_the_versions(root: Path, tmp_path: Path) -> None:
    git(root, "worktree", "add", "-q", str(tmp_path / "other"))
    version = register(tmp_path / "other", "a")
    assert registry.versions(root) == [version]


def test_a_snapshot_does_not_mind_the_environment_of_a_git_hook(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", str(root / "hook-index"))
    assert not registry.snapshot(root).made
    assert not (root / "hook-index").exists()


def test_a_project_in_a_subfolder_has_versions_of_its_own(root: Path) -> None:
    project = root / "sub"
    project.mkdir()
    (project / "params.yaml").write_text("train: {lr: 1}\n")
    (project / "input.txt").write_text("1")
    commit_all(root)
    version = register(project, "a")
    assert registry.promote(project, MODEL, "v0.1.0")
    assert registry.resolve(project, f"{MODEL}@prod") == registry.versions(project)[0]
    assert git(root, "tag", "--list").split() == [f"sub={MODEL}#prod#1", f"sub={MODEL}@v0.1.0"]
    assert registry.find(project, MODEL) is not None
    assert registry.lineage(project, version).code == {"input.txt": "c0de"}
    assert registry.versions(root) == []


def test_without_a_git_identity_versions_are_resflows_own(root: Path) -> None:
    config = (root / ".git/config").read_bytes()
    ran(root, "a")
    snapshot = registry.snapshot(root, ["dvc.lock"])
    version = registry.register(root, MODEL, snapshot)
    assert snapshot.identity == "resflow"
    assert git(root, "log", "-1", "--format=%an %ae %cn %ce", version.commit) == " ".join(
        ["resflow resflow@localhost"] * 2
    )
    assert (
        git(root, "for-each-ref", "--format=%(taggername) %(taggeremail)", "refs/tags") == "resflow <resflow@localhost>"
    )
    assert (root / ".git/config").read_bytes() == config


def test_with_a_git_identity_versions_are_the_users(root: Path) -> None:
    git(root, "config", "user.name", "Ann Lee")
    git(root, "config", "user.email", "ann@example.org")
    ran(root, "a")
    snapshot = registry.snapshot(root, ["dvc.lock"])
    registry.register(root, MODEL, snapshot)
    assert snapshot.identity == "Ann Lee <ann@example.org>"
    assert git(root, "log", "-1", "--format=%an <%ae>", snapshot.commit) == snapshot.identity
    assert git(root, "for-each-ref", "--format=%(taggername) %(taggeremail)", "refs/tags") == snapshot.identity


def test_no_git_repository_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"not in a git repository.*git init") as caught:
        registry.snapshot(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_a_repository_without_a_commit_is_said_plainly(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    with pytest.raises(RegistryError, match=r"no commit yet.*Commit first"):
        registry.snapshot(tmp_path)
    assert registry.versions(tmp_path) == []


def test_a_folder_that_does_not_exist_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no folder"):
        registry.versions(tmp_path / "absent")


def test_a_missing_git_is_said_plainly(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SetupError, match="git: is not installed"):
        registry.snapshot(root)


def test_a_file_outside_the_repository_is_refused(root: Path) -> None:
    (root.parent / "outside").write_text("x")
    with pytest.raises(RegistryError, match="outside"):
        registry.snapshot(root, ["../outside"])


# --- versions ---------------------------------------------------------------------------------------------------------


def test_registering_the_same_content_again_makes_nothing(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = register(root, "a")
    assert (str(first), first.created) == (f"{MODEL}@v0.1.0", True)
    (root / "README.md").write_text("another commit, the same dvc.lock")
    commit_all(root)

    again = register(root, "a")

    assert (again, again.created) == (first, False)
    assert registry.find(root, MODEL) == first
    assert registry.find(root, MODEL, (root / "dvc.lock").read_bytes()) == first
    assert git(root, "tag", "--list") == f"{MODEL}@v0.1.0"
    assert capfd.readouterr() == ("", "")


def test_new_content_raises_the_last_number(root: Path) -> None:
    numbers = [register(root, model).version for model in ("a", "b", "c")]
    assert numbers == ["v0.1.0", "v0.1.1", "v0.1.2"]
    assert [version.version for version in registry.versions(root, MODEL)] == numbers[::-1]
    ran(root, "d")
    assert registry.find(root, MODEL) is None


def test_without_dvc_lock_there_is_nothing_to_find_or_register(root: Path) -> None:
    assert registry.find(root, MODEL) is None
    with pytest.raises(RegistryError, match=r"holds no dvc\.lock"):
        registry.register(root, MODEL, "HEAD")
    with pytest.raises(RegistryError, match="no commit deadbeef"):
        registry.register(root, MODEL, "deadbeef")


def test_the_message_of_a_version_is_kept(root: Path) -> None:
    ran(root, "a")
    registry.register(root, MODEL, registry.snapshot(root, ["dvc.lock"]), "accuracy 0.99\n\nFrom a test")
    assert registry.versions(root)[0].message == "accuracy 0.99\n\nFrom a test"


def test_two_processes_that_register_at_once_make_one_version(root: Path) -> None:
    ran(root, "a")
    code = (
        "import sys; from pathlib import Path; from resflow import registry; import gto.api; root = Path(sys.argv[1]);"
        "snapshot = registry.snapshot(root, ['dvc.lock']); print('ready', flush=True); sys.stdin.readline();"
        f"print(registry.register(root, '{MODEL}', snapshot).created)"
    )
    command = [sys.executable, "-c", code, str(root)]
    pair = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in pair:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in pair:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sorted(process.communicate(timeout=60)[0] for process in pair) == ["False\n", "True\n"]
    assert git(root, "tag", "--list") == f"{MODEL}@v0.1.0"


def test_a_name_that_gto_refuses_is_an_error_of_the_registry(root: Path) -> None:
    ran(root, "a")
    with pytest.raises(RegistryError, match=r"GTO could not register .*Only letters"):
        registry.register(root, "my model", registry.snapshot(root, ["dvc.lock"]))


def test_a_withdrawn_version_does_not_come_back_by_itself(root: Path) -> None:
    register(root, "a")
    register(root, "b")
    tag(root, f"{MODEL}@v0.1.1!", f"{MODEL}@v0.1.1^{{commit}}")
    assert registry.find(root, MODEL) is None
    with pytest.raises(RegistryError, match=r"v0\.1\.1: this very model was registered before and withdrawn"):
        register(root, "b")
    assert register(root, "c").version == "v0.1.2"
    assert gto_says(root) == ours(root)


def test_tags_that_are_not_gtos_are_passed_over(root: Path) -> None:
    version = register(root, "a")
    blob = git(root, "rev-parse", "HEAD:input.txt")
    git(root, "tag", f"{MODEL}@v9.9.9")  # lightweight
    for odd in ("v1.0.0", f"{MODEL}@1.0.0", f"{MODEL}@v1.0.0foo", f"{MODEL}@v01.0.0", "ünï@v1.0.0x", "release/2026"):
        tag(root, odd, "HEAD")
    tag(root, "nightly", blob)
    git(root, "update-ref", "refs/tags/other@v3.0.0", f"refs/tags/{MODEL}@v0.1.0")  # a renamed copy
    assert registry.versions(root) == [version]
    assert register(root, "b").version == "v0.1.1"


def test_versions_are_in_the_order_of_semantic_versioning(root: Path) -> None:
    ran(root, "a")
    commit_all(root)
    for number in ("v1.0.0-rc.2", "v1.0.0-rc.10", "v0.10.0", "v0.9.0"):
        (root / "input.txt").write_text(number)
        ran(root, number)
        commit_all(root)
        tag(root, f"{MODEL}@{number}", "HEAD")
    numbers = [version.version for version in registry.versions(root, MODEL)]
    assert numbers == ["v1.0.0-rc.10", "v1.0.0-rc.2", "v0.10.0", "v0.9.0"]
    assert gto_says(root) == ours(root)
    assert register(root, "b").version == "v1.0.0"


# --- stages -----------------------------------------------------------------------------------------------------------


def gto_says(root: Path) -> list[tuple[str, str, set[str]]]:
    import gto.api

    shown = gto.api.show(str(root), MODEL)
    return [(v["version"], v["commit_hexsha"], {stage["stage"] for stage in v["stages"]}) for v in shown]


def ours(root: Path) -> list[tuple[str, str, set[str]]]:
    return [(v.version, v.commit, set(v.stages)) for v in registry.versions(root, MODEL)]


def test_production_is_the_version_promoted_last_also_back_and_forth(root: Path) -> None:
    register(root, "a")
    register(root, "b")
    assert registry.production(root, MODEL) is None
    for version in ("v0.1.0", "v0.1.1", "v0.1.0"):
        assert registry.promote(root, MODEL, version)
        assert not registry.promote(root, MODEL, version)
        found = registry.production(root, MODEL)
        assert found is not None
        assert found.version == version
        assert gto_says(root) == ours(root)
    assert registry.promote(root, MODEL, "latest", "staging")
    assert [version.stages for version in registry.versions(root)] == [("staging",), ("prod",)]
    assert gto_says(root) == ours(root)


def test_promoting_what_does_not_exist_names_what_does(root: Path) -> None:
    register(root, "a")
    with pytest.raises(RegistryError, match=r"v0\.2\.0: there is no such version\. Did you mean v0\.1\.0"):
        registry.promote(root, MODEL, "v0.2.0")


def test_an_assignment_from_the_future_is_refused_not_outlived(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(root, "a")
    register(root, "b")
    monkeypatch.setenv("GIT_COMMITTER_DATE", f"{int(time.time()) + 3600} +0000")
    tag(root, f"{MODEL}#prod#1", f"{MODEL}@v0.1.0^{{commit}}")
    with pytest.raises(RegistryError, match="in the future"):
        registry.promote(root, MODEL, "v0.1.1")


@pytest.mark.parametrize(
    ("reference", "version"),
    [("latest", "v0.1.1"), ("prod", "v0.1.0"), ("v0.1.0", "v0.1.0"), ("0.1.1", "v0.1.1"), ("", "v0.1.1")],
)
def test_a_version_is_found_by_number_stage_or_latest(released: Path, reference: str, version: str) -> None:
    assert registry.resolve(released, f"{MODEL}@{reference}").version == version


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        (f"{MODEL}@v0.1.7", "Did you mean v0.1"),
        (f"{MODEL}@nonsense", "Known: v0.1.1, v0.1.0, prod, latest"),
        ("mnist-restnet@latest", f"Did you mean {MODEL}"),
        ("", f"Known: {MODEL}"),
    ],
)
def test_an_unknown_version_names_the_known_ones(released: Path, reference: str, hint: str) -> None:
    with pytest.raises(RegistryError, match=hint):
        registry.resolve(released, reference)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two versions, the first in production; only read."""
    root = tmp_path_factory.mktemp("released")
    git(root, "init", "-q", "-b", "main")
    for number, model in enumerate(("a", "b")):
        ran(root, model)
        (root / "dvc.yaml").write_text(DVC_YAML)
        (root / "params.yaml").write_text(f"train: {{lr: 0.{number}, epochs: 3}}\nold{number}: [1]\n")
        (root / "input.txt").write_text("1.0")
        commit_all(root)
        registry.register(root, MODEL, "HEAD")
    registry.promote(root, MODEL, "v0.1.0")
    return root


# --- reading ----------------------------------------------------------------------------------------------------------


def test_the_lineage_says_what_changed_and_what_went_in(released: Path) -> None:
    version = registry.resolve(released, f"{MODEL}@latest")
    lineage = registry.lineage(released, version)
    assert lineage.commit == git(released, "rev-parse", "HEAD")
    assert lineage.parent == lineage.base == git(released, "rev-parse", "HEAD^")
    assert lineage.branches == ("main",)
    assert lineage.compared_with == f"{MODEL}@v0.1.0"
    assert lineage.params == {"train.lr": (0.0, 0.1), "old0": ([1], None), "old1": (None, [1])}
    assert lineage.parameters == {"seed": 0, "train.epochs": 3, "train.lr": 0.1}
    assert lineage.code == {"input.txt": "c0de"}
    assert lineage.data == {"data/prepared": "feed.dir", "models/model.txt": "b"}
    assert lineage.metrics == {"metrics/train.json": {"accuracy": 0.99, "loss.train": 0.1}}


def test_the_lineage_of_a_first_commit_has_no_parent(released: Path) -> None:
    lineage = registry.lineage(released, registry.resolve(released, f"{MODEL}@prod"))
    assert (lineage.parent, lineage.compared_with) == (None, None)
    assert lineage.params["train.epochs"] == (None, 3)


def test_the_lineage_of_a_snapshot_names_the_branch_it_stands_beside(root: Path) -> None:
    (root / "params.yaml").write_text("train: {lr: 0.5, epochs: 3}\n")
    lineage = registry.lineage(root, register(root, "a"))
    assert lineage.branches == ("main",)
    assert lineage.compared_with == lineage.parent == git(root, "rev-parse", "main")
    assert lineage.params == {"train.lr": (0.1, 0.5)}


def test_the_lineage_of_a_snapshot_upon_a_snapshot_names_the_nearest_commit_that_a_branch_holds(root: Path) -> None:
    """As `resflow run --set` makes them where the work tree is dirty."""
    main = git(root, "rev-parse", "main")
    (root / "params.yaml").write_text("train: {lr: 0.5, epochs: 3}\n")
    beside = registry.snapshot(root).commit
    git(root, "checkout", "-q", "--force", "--detach", beside)
    (root / "params.yaml").write_text("train: {lr: 0.5, epochs: 4}\n")
    version = register(root, "a")
    lineage = registry.lineage(root, version)
    assert (lineage.parent, lineage.base, lineage.branches, lineage.compared_with) == (beside, main, ("main",), main)
    assert lineage.params == {"train.epochs": (3, 4), "train.lr": (0.1, 0.5)}
    git(root, "branch", "-q", "-D", "main")
    alone = registry.lineage(root, version)
    assert (alone.base, alone.branches, alone.compared_with) == (None, (), beside)


def test_a_file_that_a_commit_lacks_is_said_plainly(released: Path) -> None:
    assert registry.read(released, "HEAD", "input.txt") == b"1.0"
    for path in ("absent.txt", "metrics"):
        with pytest.raises(RegistryError, match="is not in that commit"):
            registry.read(released, "HEAD", path)


def test_the_model_is_the_artifact_of_type_model(root: Path) -> None:
    assert registry.artifact(root) == registry.Artifact(name=MODEL, path="models/model.txt")


@pytest.mark.parametrize(
    "text", ["stages: {}", "artifacts: {a: {path: x, type: data}}", "[]", "", "artifacts: [a]", "a: ["]
)
def test_a_dvc_yaml_without_a_model_is_said_plainly(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.yaml").write_text(text)
    with pytest.raises(RegistryError, match=r"dvc\.yaml"):
        registry.artifact(tmp_path)


def test_clones_that_are_bare_or_shallow_or_lack_tags_answer_without_a_traceback(
    released: Path, tmp_path: Path
) -> None:
    known = registry.versions(released)
    source = f"file://{released}"
    for name, options in {
        "bare": ["--bare"],
        "shallow": ["--depth=1", "--no-single-branch"],
        "tagless": ["--no-tags"],
    }.items():
        git(tmp_path, "clone", "-q", *options, source, name)
    assert registry.versions(tmp_path / "bare") == known
    assert registry.read(tmp_path / "bare", f"{MODEL}@v0.1.0", "input.txt") == b"1.0"
    assert registry.find(tmp_path / "bare", MODEL, (released / "dvc.lock").read_bytes()) == known[0]
    assert not registry.register(tmp_path / "bare", MODEL, "HEAD").created
    with pytest.raises(RegistryError, match="bare repository"):
        registry.snapshot(tmp_path / "bare")

    assert registry.find(tmp_path / "shallow", MODEL) == known[0]
    assert registry.lineage(tmp_path / "shallow", known[0]).commit == known[0].commit

    assert registry.versions(tmp_path / "tagless") == []
    with pytest.raises(RegistryError, match="git fetch --tags"):
        registry.resolve(tmp_path / "tagless", f"{MODEL}@latest")


# --- other people's tools ---------------------------------------------------------------------------------------------


def test_gto_and_dvc_get_the_version_from_a_plain_clone(root: Path, tmp_path: Path) -> None:
    def dvc(folder: Path, *arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *arguments, "-q"], cwd=folder, check=True, capture_output=True)

    def gto(folder: Path, command: str) -> Any:
        program = str(Path(sys.executable).with_name("gto"))
        return json.loads(subprocess.check_output([program, command, MODEL, "--json"], cwd=folder))

    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text(
        f"[core]\n    remote = local\n    analytics = false\n['remote \"local\"']\n    url = {tmp_path / 'remote'}\n"
    )
    (root / ".dvc/.gitignore").write_text("/tmp\n/cache\n/config.local\n")
    commit_all(root)
    dvc(root, "repro")
    dvc(root, "push")
    version = registry.register(root, MODEL, registry.snapshot(root, ["dvc.lock", "metrics"]))
    registry.promote(root, MODEL, version.version)
    (root / "input.txt").write_text("2.0")
    commit_all(root, "Go on")

    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(root), str(clone))
    assert [(v["version"], [s["stage"] for s in v["stages"]]) for v in gto(clone, "show")] == [("v0.1.0", ["prod"])]
    assert {event["event"] for event in gto(clone, "history")} >= {"registration", "assignment"}
    dvc(tmp_path, "artifacts", "get", str(clone), MODEL, "--rev", "v0.1.0", "-o", "by-version")
    dvc(tmp_path, "artifacts", "get", str(clone), MODEL, "--stage", "prod", "-o", "by-stage")
    assert (tmp_path / "by-version").read_text() == (tmp_path / "by-stage").read_text() == "1.0"
    git(clone, "checkout", "-q", str(version))
    dvc(clone, "pull")
    assert (clone / "models/model.txt").read_text() == (clone / "input.txt").read_text() == "1.0"
