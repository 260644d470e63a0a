"""One training of a search: known by its inputs, kept as a record, gone on with after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resflow.errors import DataError, SetupError
from resflow.study import trial
from resflow.study.plan import clear
from tests.unit.study.searched import POINT, plan, record


class Killed(Exception):
    """A kill, as far as one process can have one."""


def test_a_training_is_known_by_what_its_result_depends_on(tmp_path: Path) -> None:
    of = plan(tmp_path)
    job = trial.job_of(of.base, of.params, POINT, seed=0, epochs=2)
    again = plan(tmp_path, trials=9, final_seeds=1, max_macs=10**9, space={**of.params.search.space, "net.se": [0]})
    assert trial.job_of(again.base, again.params, POINT, seed=0, epochs=2).name == job.name
    others: list[tuple[dict[str, Any], int, int]] = [
        ({**POINT, "train.lr": 0.11}, 0, 2),
        ({**POINT, "net.widths": [4, 4]}, 0, 2),
        (POINT, 1, 2),
        (POINT, 0, 3),
    ]
    names = {trial.job_of(of.base, of.params, point, seed=s, epochs=e).name for point, s, e in others}
    assert len(names - {job.name}) == len(others)


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    of = plan(tmp_path)
    job, seen = of.job(POINT), []
    whole = trial.train(job, seen.append)
    assert whole.status == "done"
    assert [one["epoch"] for one in seen] == [1, 2]
    clear(of.base, job.name)

    def kill(figures: dict[str, Any]) -> None:
        raise Killed

    with pytest.raises(Killed):
        trial.train(job, kill)
    seen.clear()
    rest = trial.train(job, seen.append)
    assert [one["epoch"] for one in seen] == [1, 2]
    assert seen[0]["seconds"] is None  # it was not trained again
    assert rest.accuracies == whole.accuracies
    assert all(rest.weights[name].equal(tensor) for name, tensor in whole.weights.items())
    clear(of.base, job.name)
    assert not (tmp_path / "runs" / job.name).exists()


def test_a_training_that_takes_too_long_is_given_up_after_an_epoch(tmp_path: Path) -> None:
    outcome = trial.train(plan(tmp_path).job(POINT), lambda figures: None, max_seconds=1e-9)
    assert (outcome.status, len(outcome.accuracies)) == ("slow", 1)


def test_a_training_that_diverges_is_an_outcome(tmp_path: Path) -> None:
    of = plan(tmp_path, space={"train.lr": [1e30]})
    outcome = trial.train(of.job({"train.lr": 1e30}), lambda figures: None)
    assert outcome.status == "diverged"
    assert "after step" in outcome.reason


def test_a_training_that_memory_does_not_hold_is_an_outcome(tmp_path: Path) -> None:
    huge = {"net.block": "bottleneck", "net.stem_width": 1, "net.widths": [2**22, 2**22], "net.blocks": [1, 1]}
    of = plan(tmp_path, space={name: [value] for name, value in huge.items()})
    outcome = trial.train(of.job(huge), lambda figures: None)  # more than a process can name: refused everywhere
    assert (outcome.status, outcome.accuracies, outcome.seconds) == ("memory", (), None)
    assert "memory" in outcome.reason


def test_records_are_read_as_they_were_kept(tmp_path: Path) -> None:
    of = plan(tmp_path)
    kept = [record(of, 2, accuracies=(1 / 3, 2 / 3), seconds=None), record(of, 1, status="running", accuracies=())]
    assert trial.read(of.trials) == kept[::-1]
    assert [one.accuracy for one in kept] == [2 / 3, 0.0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"macs": 2000,', '"macs": 2000', r"Invalid JSON: expected `,` or `}` at line \d+ column 3"),
        ('"macs": 2000,', '"macs": "many",', "macs: Input should be a valid integer"),
        ('"macs": 2000,', "", "macs: Field required"),
        ('"status": "done"', '"status": "lost"', "status: Input should be 'running', 'done', "),
        ('"seed": 0', '"seed": \udcff', "'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_record_that_was_damaged_by_hand_is_told(tmp_path: Path, old: str, new: str, said: str) -> None:
    of = plan(tmp_path)
    path = of.trials / f"{record(of, 1).name}.json"
    path.write_text(path.read_text().replace(old, new), errors="surrogateescape")
    with pytest.raises(DataError, match=rf"{path.name}: is no record of a training \({said}.*\). Remove it, whose"):
        trial.read(of.trials)


def test_a_record_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("")
    with pytest.raises(SetupError, match=r"cannot be written"):
        record(plan(tmp_path), 1)
