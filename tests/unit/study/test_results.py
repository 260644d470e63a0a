"""What a search found: seeds in sum, each test split touched once a training, files that say it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from resflow.data import arrays
from resflow.errors import DataError
from resflow.files import write_together
from resflow.nets import file as model_file
from resflow.study import plan as plans
from resflow.study import results
from resflow.study.plan import Plan
from tests.unit.study.searched import plan, record
from tests.unit.training.small import VALIDATION


def finished(root: Path) -> Plan:
    """A search whose finals are done, with untrained networks."""
    of = plan(root)
    for number, accuracy, macs in ((1, 0.8, 1000), (2, 0.9, 2000), (3, 0.7, 5000)):
        made = record(of, number, accuracies=(0.1, accuracy), macs=macs)
        for seed, job in enumerate(plans.finals_of(of, made)):
            model_file.save(of.finals / f"{job.name}.safetensors", job.card.network().state_dict(), job.card)
            accuracies = (accuracy + 0.02 * seed,)
            replace(made, name=job.name, seed=job.seed, accuracies=accuracies).keep(of.finals)
    return of


def test_points_of_the_front_have_mean_and_deviation_over_their_seeds(tmp_path: Path) -> None:
    of = finished(tmp_path)
    report = results.measured(of, plans.front(of), None)
    assert [point["number"] for point in report["front"]] == [1, 2]
    best = report["front"][0]
    assert best["validation"] == pytest.approx({"mean": 0.91, "std": 0.02 / 2**0.5, "n": 2})
    assert best["trial_accuracy"] == 0.9
    assert best["net"]["widths"] == [4, 8]
    assert best["train"] == {"lr": 0.102}
    assert [one["rank"] for one in report["trials"]] == [1, 1, 2]


def test_test_accuracies_are_kept_until_the_test_split_changes(tmp_path: Path) -> None:
    of = finished(tmp_path)
    report = results.measured(of, plans.front(of), None)
    for point in report["front"]:
        point["runs"] = dict.fromkeys(point["runs"], 2.0)  # which no measurement gives
    results.save(tmp_path, report)
    kept = results.measured(of, plans.front(of), results.load(tmp_path))
    assert [point["test"]["mean"] for point in kept["front"]] == [2.0, 2.0]

    labels = arrays.labels_path(of.base.arrays.folder, "test")
    write_together({labels: arrays.writer((VALIDATION.labels + 1) % 3)})
    anew = results.measured(of, plans.front(of), results.load(tmp_path))
    assert all(point["test"]["mean"] <= 1 for point in anew["front"])
    assert [{*point["runs"]} for point in anew["front"]] == [{*point["runs"]} for point in kept["front"]]


def test_accuracies_on_a_test_split_that_nobody_noted_are_not_kept(tmp_path: Path) -> None:
    of = finished(tmp_path)
    report = results.measured(of, plans.front(of), None)
    del report["test_split"]
    for point in report["front"]:
        point["runs"] = dict.fromkeys(point["runs"], 2.0)
    results.save(tmp_path, report)
    anew = results.measured(of, plans.front(of), results.load(tmp_path))
    assert all(point["test"]["mean"] <= 1 for point in anew["front"])


def test_a_test_split_that_is_missing_is_told(tmp_path: Path) -> None:
    of = finished(tmp_path)
    for path in (arrays.images_path, arrays.labels_path):
        path(of.base.arrays.folder, "test").unlink()
    with pytest.raises(DataError, match=r"test/images\.npy: is missing"):
        results.measured(of, plans.front(of), None)


def test_what_was_found_is_written_and_read_again(tmp_path: Path) -> None:
    of = finished(tmp_path)
    report = results.measured(of, plans.front(of), None)
    results.save(tmp_path, report)
    assert results.load(tmp_path) == json.loads(json.dumps(report))
    table = list(csv.DictReader((tmp_path / "study/search.csv").open()))
    assert [(row["number"], row["rank"], row["net.widths"]) for row in table][2] == ("3", "2", "4,8")
    assert (tmp_path / "study/search.png").read_bytes().startswith(b"\x89PNG")
    (row, _) = results.rows(report)
    assert row[:2] == ("1", "91.00 ± 1.41 % (2)")


def test_trials_and_points_that_memory_did_not_hold_are_told(tmp_path: Path) -> None:
    of = finished(tmp_path)
    record(of, 4, status="memory", accuracies=(), seconds=None)
    best = plans.front(of)[0]
    for job in plans.finals_of(of, best):
        replace(best, name=job.name, seed=job.seed, status="memory", accuracies=()).keep(of.finals)
    report = results.measured(of, [best], None)
    assert results.ends(report) == "trials: 3 done, 1 out of memory"
    assert results.rows(report)[0][1:3] == ("out of memory", "out of memory")


def test_a_result_that_is_missing_or_damaged_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"search.json: there is no result of a search. Run `resflow search`"):
        results.load(tmp_path)
    (tmp_path / "study").mkdir()
    for text, said in (
        ("{\n1", "Invalid JSON: .* at line 2"),
        ("[]", "Input should be an object"),
        ("{}", "space: Fie"),
    ):
        (tmp_path / "study/search.json").write_text(text)
        with pytest.raises(DataError, match=rf"search.json: is damaged \({said}.*\). Run `resflow search`, which"):
            results.load(tmp_path)


def test_a_value_of_a_result_that_was_changed_by_hand_to_another_kind_is_told(tmp_path: Path) -> None:
    of = finished(tmp_path)
    results.save(tmp_path, results.measured(of, plans.front(of), None))
    path = tmp_path / "study/search.json"
    path.write_text(path.read_text().replace('"macs": 2000', '"macs": "2 M"'))
    with pytest.raises(DataError, match=r"search.json: is damaged \(front.0.macs: Input should be a valid integer\)"):
        results.load(tmp_path)
