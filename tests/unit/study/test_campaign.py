"""A whole study of next to nothing: every kind of trial runs, stops and goes on, and nothing runs twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import resflow
from resflow.data.arrays import Split
from resflow.errors import DataError, NetError, TrainingError
from resflow.processes import alone
from resflow.study.campaign import CODE, SHEET, Campaign, study
from resflow.study.experiments import OFF, Experiment, plan
from resflow.study.measurement import Ground, perform
from resflow.study.record import Record, Records
from resflow.study.report import write_report
from tests.unit.study import searched
from tests.unit.study.conftest import SIZES, STUDY
from tests.unit.training.small import CARD, TRAINING, VALIDATION, settings, split

GROUND = Ground(
    training=TRAINING, validation=VALIDATION, test=split(20, 2), classes=CARD.classes, mean=CARD.mean, std=CARD.std
)


def some(experiments: tuple[Experiment, ...]) -> tuple[Experiment, ...]:
    """Of each question three points; workers, which Ray starts, are seen in the integration test."""
    return tuple(Experiment(**{**vars(each), "points": each.points[::4][:3]}) for each in experiments)


def test_a_stopped_study_goes_on_and_runs_nothing_twice(experiments: tuple[Experiment, ...], tmp_path: Path) -> None:
    path, said = tmp_path / "results.jsonl", []
    few = some(experiments)

    def stop(line: str) -> None:
        said.append(line)
        if line.startswith("[3/"):
            raise KeyboardInterrupt

    whole = Campaign(few, Records(path), GROUND, "data")
    total = len(whole.pending)
    with pytest.raises(KeyboardInterrupt):
        whole.run(stop)
    assert any("to run: about" in line for line in said)
    assert len(Records(path)) == 3

    again = Campaign(few, Records(path), GROUND, "data")
    assert len(again.pending) == total - 3
    told: list[str] = []
    again.run(told.append)
    assert f"{total - 3} to run: about" in "".join(told)
    records = Records(path)
    assert len({record.key for record in records}) == len(records) == total
    assert Campaign(few, records, GROUND, "data").pending == []
    assert len(Campaign(few, records, GROUND, "other data").pending) == total
    assert {"plain8", "resnet8", "preact_resnet8", "article_cnn"} <= {record.asked["structure"] for record in records}


def test_a_speed_is_one_of_this_gpu_and_an_error_one_of_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def campaign(records: Records, gpu: str) -> Campaign:
        """One where torch finds this GPU, and none where its name is empty."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpu))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpu)
        return Campaign(plan(STUDY, settings(device="auto")), records, GROUND, "data")

    records = Records(tmp_path / "results.jsonl")
    first = campaign(records, "H100")
    for trial in first.pending:
        made = {"key": first.key(trial), "asked": trial.asked, "code": "c", "data": "d", "result": {}}
        records.add(Record(**made, seconds=1.0, machine="m", load=0.0))
    assert campaign(records, "H100").pending == []
    assert {trial.kind for trial in campaign(records, "H200").pending} == {"speed", "workers"}
    on_cpu = campaign(records, "").pending
    assert len(on_cpu) == len(records)
    assert {trial.train["device"] for trial in on_cpu} == {"cpu"}


def test_a_speed_is_one_of_this_processors_instructions(
    experiments: tuple[Experiment, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which a virtual machine may hide, so that a processor's name does not tell them."""
    keys = []
    for shown in ("AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda shown=shown: shown)
        campaign = Campaign(experiments, Records(tmp_path / "results.jsonl"), GROUND, "data")
        keys.append({trial.kind: campaign.key(trial) for trial in campaign.pending})
    assert {kind for kind in keys[0] if keys[0][kind] != keys[1][kind]} == {"speed", "workers"}


def test_what_the_data_sheet_says_is_part_of_a_trial_as_the_images_are(
    experiments: tuple[Experiment, ...], tmp_path: Path
) -> None:
    searched.plan(tmp_path / "data")  # writes its arrays where a study looks for them
    one = Experiment(**{**vars(experiments[0]), "points": experiments[0].points[:1]})

    def recorded(**changed: Any) -> str:
        """What a study says that it has, before it runs the rest."""
        sheet = {"image_shape": CARD.image_shape, "classes": CARD.classes, "mean": CARD.mean, "std": CARD.std}
        (tmp_path / SHEET).write_text(json.dumps(sheet | changed))
        said: list[str] = []
        study(tmp_path, tmp_path / "study", [one], ["resflow", "study"], report_only=False, say=said.append)
        return said[0]

    assert recorded() == "2 trials, 0 of which are recorded"
    assert recorded() == "2 trials, 2 of which are recorded"
    for changed in ({"classes": ["a", "b", "c", "d"]}, {"mean": [0.4]}, {"std": [0.2]}):
        assert recorded(**changed) == "2 trials, 0 of which are recorded"


def install_torch(place: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this version of torch be installed, as far as packages tell."""
    said = place / version / f"torch-{version}.dist-info"
    said.mkdir(parents=True)
    (said / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(said.parent))


def test_another_release_of_torch_trains_anew_and_the_page_names_those_it_has(
    experiments: tuple[Experiment, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = Experiment(**{**vars(experiments[0]), "points": experiments[0].points[:2]})
    first = Experiment(**{**vars(depth), "points": depth.points[:1]})
    records = Records(tmp_path / "results.jsonl")
    install_torch(tmp_path, "9.8.0+cpu", monkeypatch)
    Campaign([depth], records, GROUND, "data").run(lambda line: None)
    install_torch(tmp_path, "9.8.0+cu126", monkeypatch)  # the same release, built for GPUs
    assert Campaign([depth], records, GROUND, "data").pending == []

    install_torch(tmp_path, "9.9.0+cpu", monkeypatch)
    assert len(Campaign([depth], records, GROUND, "data").pending) == 4
    Campaign([first], records, GROUND, "data").run(lambda line: None)
    assert len(Campaign([depth], records, GROUND, "data").pending) == 2
    page = write_report(tmp_path, [depth], records, ["resflow", "study"]).read_text()
    assert "torch 9.8.0+cpu</li>" in page
    assert "torch 9.9.0+cpu</li>" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"train\.device: is cuda, but no GPU is found"):
        Campaign(plan(STUDY, settings(device="cuda")), Records(tmp_path / "r"), GROUND, "data")


LOADS = f"""
import sys
from resflow.params import Study
from resflow.study.experiments import plan
from resflow.study.measurement import Ground, perform
from tests.unit.training.small import CARD, TRAINING, settings

trial = plan(Study.model_validate({SIZES}), settings())[0].points[0].trials[0]
splits = {{name: TRAINING for name in ("training", "validation", "test")}}
perform(trial, Ground(**splits, classes=CARD.classes, mean=CARD.mean, std=CARD.std))
print(*(module.__file__ for name, module in sys.modules.items() if name.startswith("resflow.")))
import resflow.training.cluster.trainer
print(*(module.__file__ for name, module in sys.modules.items() if name.startswith("resflow.")))
"""
"""A training of the study, and what it has loaded; then what comes with Ray Train."""


def test_the_code_that_a_trial_loads_is_in_its_key() -> None:
    """But for what is asked and how it is checked, which are in the key by their values, and for what changes nothing:
    errors, files, processes."""
    tests, package = Path(__file__).parents[3], Path(resflow.__file__).parent
    done = subprocess.run([sys.executable, "-c", LOADS], cwd=tests, capture_output=True, text=True, check=True)
    others = {"errors.py", "files.py", "params.py", "processes.py", "study/experiments.py"}
    for kind, loaded in zip(("train", "workers"), done.stdout.splitlines(), strict=True):
        listed = {path for pattern in CODE[kind] for path in package.glob(pattern)}
        left = {Path(path) for path in loaded.split() if not path.endswith("__init__.py")} - listed
        assert {path.relative_to(package).as_posix() for path in left} == others


def test_a_trial_gives_the_same_figures_again(experiments: tuple[Experiment, ...]) -> None:
    trial = experiments[0].points[0].trials[1]
    first = perform(trial, GROUND)
    assert perform(trial, GROUND) == first
    assert perform(experiments[0].points[0].trials[0], GROUND) != first
    assert len(first["gradients"]["start"]) == 7  # the stem and six convolutions of three blocks
    assert first["gradients"]["start"] != first["gradients"]["epoch"]


def test_the_errors_are_those_of_the_last_weights_on_each_split(experiments: tuple[Experiment, ...]) -> None:
    trial = experiments[0].points[0].trials[0]
    labels = np.zeros_like(GROUND.test.labels)
    right = perform(trial, GROUND)
    other = perform(trial, Ground(**{**vars(GROUND), "test": Split(GROUND.test.images, 1 - (labels == 0))}))
    assert {key: right[key] == other[key] for key in ("train_error", "validation_error")} == {
        "train_error": True,
        "validation_error": True,
    }
    assert right["test_error"] * 20 == pytest.approx(round(right["test_error"] * 20))


def test_a_training_that_diverges_is_a_result() -> None:
    trial = plan(STUDY, settings())[0].points[0].trials[0]
    wild = type(trial)(**{**vars(trial), "train": {**trial.train, "lr": 1e30}})
    result = perform(wild, GROUND)
    assert "after step" in result["diverged"]
    assert "test_error" not in result


def test_a_structure_that_does_not_fit_the_images_is_told_before_anything_runs(tmp_path: Path) -> None:
    tiny = Split(TRAINING.images[:, :4, :4], TRAINING.labels)
    with pytest.raises(NetError, match="4x4"):
        Campaign(plan(STUDY, settings()), Records(tmp_path / "r"), Ground(**{**vars(GROUND), "training": tiny}), "d")


def test_fewer_images_than_a_batch_are_told_before_anything_runs(tmp_path: Path) -> None:
    few = STUDY.model_copy(update={"images": 10})
    with pytest.raises(DataError, match=r"study\.images.*10 training images for batches of 16"):
        Campaign(plan(few, settings()), Records(tmp_path / "r"), GROUND, "data")


def test_two_studies_cannot_run_into_one_folder(tmp_path: Path) -> None:
    with (
        alone(tmp_path / "study" / ".lock", "is this test"),
        pytest.raises(
            TrainingError, match=rf"study/\.lock: another process runs a study .*: {os.getpid()}\. Wait for it"
        ),
    ):
        study(tmp_path, tmp_path / "study", [], ["resflow", "study"], report_only=False, say=print)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"load": "high"}, r"load: Input should be a valid number"),
        ({"asked": 5}, r"asked: Input should be an object"),
        (None, r"Invalid JSON: EOF while parsing"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, damage: dict[str, Any] | None, said: str) -> None:
    path = tmp_path / "results.jsonl"
    whole = {"key": "a", "code": "", "data": "", "asked": {}, "result": {}, "seconds": 1.0, "machine": "", "load": 0.0}
    second = json.dumps({**whole, **damage}) if damage else '{"key": "b"'
    path.write_text(json.dumps(whole) + "\n" + second + "\n")
    with pytest.raises(DataError, match=rf"results.jsonl:2: is no record of a trial \({said}.*\). Delete that line"):
        Records(path)


def test_a_report_takes_the_newest_result_and_only_of_the_data_that_was_studied_last(tmp_path: Path) -> None:
    records = Records(tmp_path / "results.jsonl")
    common = {"asked": {"seed": 0}, "seconds": 1.0, "machine": "one", "load": 0.0}
    records.add(Record(key="a", code="old", data="digits", result={"test_error": 0.3}, **common))
    records.add(Record(key="b", code="new", data="digits", result={"test_error": 0.2}, **common))
    for found in (records, Records(tmp_path / "results.jsonl")):
        newest = found.newest({"seed": 0})
        assert newest
        assert newest.code == "new"
    records.add(Record(key="c", code="new", data="letters", result={}, **{**common, "asked": {"seed": 1}}))
    assert records.newest({"seed": 0}) is None


def test_of_the_results_of_a_trial_the_newest_of_each_machine_is_kept(tmp_path: Path) -> None:
    records = Records(tmp_path / "results.jsonl")
    made = {"asked": {"seed": 0}, "data": "digits", "code": "", "result": {}, "seconds": 1.0, "load": 0.0}
    for key, place in (("a", "one"), ("b", "two"), ("c", "one")):
        records.add(Record(key=key, machine=place, **made))
    for found in (records, Records(tmp_path / "results.jsonl")):
        assert [record.key for record in found] == ["b", "c"]
        newest = found.newest({"seed": 0})
        assert newest
        assert newest.key == "c"


def test_what_training_can_do_is_either_set_by_each_trial_or_off(experiments: tuple[Experiment, ...]) -> None:
    """A new field of `params.Train` goes to one of the two."""
    for trial in (trial for each in experiments for point in each.points for trial in point.trials):
        assert {*trial.train} | {*OFF} == {*settings().model_fields_set}
        assert {*trial.train} & {*OFF} == set()
