"""What the page says of recorded results: real differences, noise, gaps; and that it needs nothing from outside."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from resflow.errors import DataError
from resflow.study import figures
from resflow.study.answers import ANSWERS
from resflow.study.cells import Cell, compare
from resflow.study.experiments import Experiment, Trial, plan
from resflow.study.record import Records
from resflow.study.report import write_report
from tests.unit.study.conftest import STUDY, recorded
from tests.unit.training.small import settings

COMMAND = ["resflow", "study"]


def cells(experiment: Experiment, records: Records) -> list[Cell]:
    found = [[records.newest(trial.asked) for trial in point.trials] for point in experiment.points]
    return [
        Cell(point=point, results=tuple(record.result for record in row if record))
        for point, row in zip(experiment.points, found, strict=True)
    ]


def answers(experiments: tuple[Experiment, ...], records: Records) -> dict[str, list[str]]:
    return {each.name: ANSWERS[each.name](cells(each, records)).sentences for each in experiments}


@pytest.fixture
def records(experiments: tuple[Experiment, ...], tmp_path: Path) -> Records:
    return recorded(Records(tmp_path / "results.jsonl"), experiments)


def test_a_degradation_that_is_real_is_said_to_be(experiments: tuple[Experiment, ...], records: Records) -> None:
    said = answers(experiments, records)["depth"]
    assert said[0].startswith("Plain networks get worse with depth; residual and pre-activation networks change")
    assert "at 14 layers a network with shortcuts fits the images better" in said[0]
    assert any(line.startswith("Pre-activation against residual, 14") and "within the noise" in line for line in said)


def test_where_all_is_noise_nothing_is_recommended(experiments: tuple[Experiment, ...], tmp_path: Path) -> None:
    def noise(trial: Trial, draw: np.random.Generator) -> float:
        return 0.02 + float(draw.normal(0, 0.004))

    said = answers(experiments, recorded(Records(tmp_path / "noise.jsonl"), experiments, noise))
    assert said["depth"][0].startswith("Plain, residual and pre-activation networks change with depth no more")
    assert said["factors"][0] == "Nothing is better than the base beyond noise; nothing is worse."
    assert said["zero-norm"][0] == "At no depth does it make a difference beyond noise."


def test_a_single_run_of_each_tells_no_difference_and_no_equality(tmp_path: Path) -> None:
    single = plan(STUDY.model_copy(update={"seeds": 1, "factor_seeds": 1}), settings())
    said = answers(single, recorded(Records(tmp_path / "single.jsonl"), single))
    assert said["depth"][0].startswith("Plain, residual and pre-activation networks are not tested")
    assert said["zero-norm"][0] == "It is not tested at 8 and 14 layers."
    assert said["factors"][0].startswith("Too few")
    assert said["front"][0].endswith("is not tested: it takes two runs of each.")
    assert any("nothing is chosen" in line for line in said["front"])
    assert "beyond noise" not in "".join(said["depth"] + said["zero-norm"] + said["factors"])


def test_a_great_difference_that_fails_the_test_only_after_correction_is_open(
    experiments: tuple[Experiment, ...], tmp_path: Path
) -> None:
    def wide(trial: Trial, draw: np.random.Generator) -> float:
        gelu = trial.net.get("activation") == "gelu"
        return (0.15 if gelu else 0.1) + 0.01 * trial.seed  # alone p = 0.02, by t = 7.1 with two degrees of freedom

    said = answers(experiments, recorded(Records(tmp_path / "wide.jsonl"), experiments, wide))["factors"]
    assert any(line.startswith("Open") and "gelu" in line for line in said)


def test_all_that_the_front_compares_is_corrected_as_one_family(
    experiments: tuple[Experiment, ...], tmp_path: Path
) -> None:
    """Twins alone are two comparisons, where a p of 0.02 would pass; with all others of the question it does not."""

    def plain_worse(trial: Trial, draw: np.random.Generator) -> float:
        worse = trial.net.get("block") == "plain" and trial.net["widths"][0] == 2
        return (0.15 if worse else 0.1) + 0.01 * trial.seed  # alone p = 0.02

    said = answers(experiments, recorded(Records(tmp_path / "twins.jsonl"), experiments, plain_worse))["front"]
    (twin,) = (line for line in said if line.startswith("Without shortcuts, plain, width 2"))
    assert "open, more runs would tell" in twin


def test_a_pair_that_is_compared_twice_counts_once(experiments: tuple[Experiment, ...]) -> None:
    points = experiments[0].points[:3]
    one, other, third = (
        Cell(point=point, results=tuple({"error": mean + at / 100} for at in range(2)))
        for point, mean in zip(points, (0.1, 0.15, 0.2), strict=True)
    )
    once = compare([(one, other), (other, third)], "error")
    again = compare([(one, other), (other, third), (other, one), (one, other)], "error")
    assert [each.p for each in again] == [once[0].p, once[1].p, once[0].p, once[0].p]
    assert again[2].difference == -again[0].difference


def test_a_much_worse_structure_is_never_chosen_for_want_of_runs(
    experiments: tuple[Experiment, ...], tmp_path: Path
) -> None:
    def rough(trial: Trial, draw: np.random.Generator) -> float:
        narrow = trial.net.get("widths", [0])[0] == 2
        return 0.05 + (0.2 + 0.1 * trial.seed if narrow else 0.0) + float(draw.normal(0, 0.0001))

    said = answers(experiments, recorded(Records(tmp_path / "rough.jsonl"), experiments, rough))["front"]
    choice = next(line for line in said if "choose" in line)
    assert "width 2" not in choice
    assert "width 2" not in said[0]


def without(cell: Cell, kept: int) -> Cell:
    """The cell whose runs after the first `kept` diverged."""
    left = ("parameters", "macs", "gradients")
    lost = tuple({**{key: one[key] for key in left}, "diverged": "the loss is nan"} for one in cell.results[kept:])
    return Cell(point=cell.point, results=(*cell.results[:kept], *lost))


def test_a_network_that_always_diverged_is_not_mixed_up_with_another(
    experiments: tuple[Experiment, ...], records: Records
) -> None:
    all_cells = cells(experiments[0], records)
    deepest = "plain, 14 layers"
    assert any(cell.point.label == deepest for cell in all_cells)
    said = ANSWERS["depth"]([without(cell, 0) if cell.point.label == deepest else cell for cell in all_cells]).sentences
    assert not [line for line in said if line.startswith("Plain, from")]
    assert not [line for line in said if "from 8 to 8 layers" in line]
    assert any(line.startswith("Plain against residual, 8 layers") for line in said)


def test_a_setting_that_diverges_at_times_is_not_called_better(experiments: tuple[Experiment, ...]) -> None:
    point = experiments[0].points[0]
    steady = Cell(point=point, results=tuple({"error": value} for value in (0.2, 0.21, 0.2)))
    lower = Cell(point=point, results=tuple({"error": value} for value in (0.1, 0.11, 0.1)))
    lost = Cell(point=point, results=(*lower.results, {"diverged": "the loss is nan"}))
    assert compare([(lower, steady)], "error")[0].verdict == "better"
    (each,) = compare([(lost, steady)], "error")
    assert each.verdict == "open"
    assert not each.is_as_good


def test_factors_name_what_is_worse_and_what_is_noise(
    experiments: tuple[Experiment, ...], records: Records
) -> None:  # fmt: skip
    said = answers(experiments, records)["factors"]
    assert said[0].startswith("Nothing is better than the base beyond noise; worse: optimiser AdamW at 0.001")
    assert "activation gelu" in said[1]


def test_gradients_are_told_by_their_ratio(experiments: tuple[Experiment, ...], records: Records) -> None:
    said = answers(experiments, records)["gradients"]
    found = re.search(r"gradient is ([\d.,]+) times", said[0])
    assert found
    ratio = float(found[1].replace(",", ""))
    assert ratio == pytest.approx(10 ** (0.5 * 12), rel=0.3)


def test_what_a_residual_network_saves_is_counted_from_the_cheapest_that_is_as_accurate(
    experiments: tuple[Experiment, ...], records: Records
) -> None:
    said = answers(experiments, records)["front"]
    assert re.search(r"at least as accurate as article_cnn, .* with \d+\.\d times fewer multiply-accum", said[0])


def test_a_study_that_was_stopped_says_how_far_it_came(experiments: tuple[Experiment, ...], tmp_path: Path) -> None:
    records = Records(tmp_path / "results.jsonl")
    recorded(records, experiments[1:2])
    page = write_report(tmp_path, experiments[1:5:2], records, COMMAND).read_text()
    assert "0 of its" in page
    assert "Too few of its trials have run" in page


def test_a_report_of_nothing_is_an_error(experiments: tuple[Experiment, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no result"):
        write_report(tmp_path, experiments, Records(tmp_path / "none.jsonl"), COMMAND)


def test_the_page_is_whole_in_itself_and_names_the_command_of_each_chart(written: Path) -> None:
    page = written.read_text()
    assert page.count("<svg") == len(list(written.parent.glob("*.png"))) == 13
    assert re.findall(r"(?:src|href)=\"(?!#|data:)([^\"]*)\"", page) == []
    assert "@import" not in page
    assert "a &lt;machine&gt;" in page
    assert "resflow study --only depth" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_a_chart_has_the_same_bytes_each_time_and_the_pages_own_ink() -> None:
    line = figures.Line(label="a & b", x=(1.0, 2.0), y=(3.0, 4.0), spread=(0.1, 0.2))
    chart = figures.Chart(name="one", title="A title", x="x", y="y", kind="lines", lines=(line, line))
    assert figures.png(chart) == figures.png(chart)
    drawn = figures.svg(chart)
    assert drawn == figures.svg(chart)
    assert "currentColor" in drawn
    assert "a &amp; b" in drawn
    assert not re.search(r"<svg[^>]* (width|height)=", drawn)
