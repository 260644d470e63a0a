"""The page on scaling: of what was measured, with published figures in the place of a GPU or with its own."""

from __future__ import annotations

import json

import pytest

from benchmarks import scaling
from benchmarks.scaling_page import DGX, WORKERS, Case, Measured, page
from benchmarks.step_model import Link, Work, ddp_step, sharded_step

MEASURED = Measured(
    structure="resnet8_max",
    batch=256,
    alone={workers: 0.064 / workers for workers in WORKERS},
    rings={4: 2e-4, 4 * 2**20: 4.2e-3},
    cases=[Case("resnet8_max", 128, apart=0.030, ddp=0.033, shards=0.036)],
    steps=7,
)
HOSTS = Link(1.25e9, 5e-5)
GPU = {
    "device": "A GPU",
    "resnet50": [
        {"compiled": False, "resident": True, "batch": 256, "images_per_second": 1000.0},
        {"compiled": True, "resident": False, "batch": 128, "images_per_second": 1280.0},
    ],
    "mnist": [{"structure": "resnet8_max", "batch": 256, "images_per_second": 256_000.0}],
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it draws a figure into docs/images


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of the first table after a title."""
    lines = text.partition(title)[2].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    table = lines[first : lines.index("", first)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_a_published_step_time_is_said_not_to_be_ours(tmp_path):
    text = page(MEASURED, [DGX, DGX], HOSTS, None)
    assert "not measured by us: 2,470 images/s" in text
    assert "NVIDIA, DeepLearningExamples" in text
    assert (tmp_path / "docs/images/scaling.png").read_bytes().startswith(b"\x89PNG")
    one = rows(text, f"### {DGX.name}")[0]
    assert one[:5] == ["1", "1", "103.6", "2,470", "100.0%"]


def test_what_a_gpu_measured_takes_the_place_of_published_figures():
    text = page(MEASURED, [DGX, DGX], HOSTS, GPU)
    assert "not measured by us" not in text
    assert "A step of one GPU: 100.0 ms (A GPU, compiled, images on the host)" in text
    assert rows(text, f"### {DGX.name}")[0][3] == "1,280"
    assert rows(text, "On A GPU, 256 images each")[0][:4] == ["1", "1", "1.0", "256,000"]


def test_measured_steps_stand_beside_those_predicted_from_loopback():
    """657,512 bytes of gradients, over 4 MiB in 4 ms and 0.1 ms of latency."""
    link = Link(4 * 2**20 / 4e-3, 1e-4)
    work = Work(compute=0.030, gradients=312_040, statistics=2_688)
    loopback = scaling.Cluster(name="", per_node=2, inside=link, between=link)
    predicted = [f"{1e3 * step:.2f}" for step in (ddp_step(work, 2, loopback), sharded_step(work, 2, loopback, 2))]
    (row,) = rows(page(MEASURED, [DGX, DGX], HOSTS, None), "## Does it hold?")
    assert row[:5] == ["resnet8_max", "128", "30.00", "33.00", predicted[0]]
    assert row[7:9] == ["36.00", predicted[1]]


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({**GPU, "resnet50": []}), json.dumps({"device": "x"})])
def test_another_file_than_that_of_the_gpu_benchmark_is_refused_with_how_to_write_it(tmp_path, content):
    path = tmp_path / "gpu.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match=r"gpu\.json does not hold what benchmarks\.gpu measured.*--json FILE"):
        scaling.gpu_figures(path)
