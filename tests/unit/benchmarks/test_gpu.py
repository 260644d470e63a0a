"""The benchmark for GPUs, where there is none: it runs, and on a machine that has torch and NumPy alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, report, scaling
from resflow import params
from resflow.nets import create

ROOT = Path(__file__).parents[3]
ALONE = """
import re, runpy, sys, tomllib
from importlib.machinery import ModuleSpec
from importlib.metadata import requires

def names(lines):
    return {re.match(r"[\\w-]+", line)[0].replace("-", "_") for line in lines}

with open("pyproject.toml", "rb") as file:
    given = names(tomllib.load(file)["project"]["dependencies"])
other = {"pyyaml": "yaml", "pillow": "PIL"}
kept = {"torch", "numpy", "mpmath"}  # torch needs the last by way of sympy
missing = {other.get(name, name) for name in given - names(requires("torch")) - kept}

class Missing:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.partition(".")[0] in missing else None

    def create_module(self, spec):  # torch asks for specs of what it never imports
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Missing())
sys.argv = ["gpu", "--tiny", "--device", "cpu", "--json", sys.argv[1]]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def test_it_runs_with_torch_and_numpy_alone_and_the_model_of_scaling_reads_what_it_wrote(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "gpu.json")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "## MNIST" in done.stdout
    assert "## ResNet-50" in done.stdout
    found = scaling.gpu_figures(tmp_path / "gpu.json")
    assert found["device"] == "CPU"
    assert {row["resident"] for row in found["resnet50"]} == {True, False}
    assert all(row["images_per_second"] > 0 for row in [*found["mnist"], *found["resnet50"]])


def test_without_a_gpu_it_says_that_there_is_none():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "no GPU" in done.stderr


def test_what_it_printed_elsewhere_becomes_a_part_of_the_page(tmp_path, monkeypatch):
    page, printed = tmp_path / "benchmarks.md", tmp_path / "gpu.md"
    page.write_text(f"{report.HEAD}\n## On a GPU\n\nNot yet.\n\n## Else\n\nelse\n")
    printed.write_text("# On a GPU\n\nA device\n\n## MNIST\n\n| a |\n")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["gpu", "--record", str(printed)])
    gpu.main()
    wanted = "## On a GPU\n\nA device\n\n### MNIST\n\n| a |\n\n## Else\n\nelse\n"
    assert page.read_text() == f"{report.HEAD}\n{wanted}"


def test_what_is_no_measurement_of_a_gpu_is_not_recorded(tmp_path, monkeypatch):
    (tmp_path / "gpu.md").write_text("# Smoke check\n")
    monkeypatch.setattr(sys, "argv", ["gpu", "--record", str(tmp_path / "gpu.md")])
    with pytest.raises(SystemExit, match="does not hold what this prints on a GPU"):
        gpu.main()


def test_its_recipe_is_that_of_params_yaml(monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = params.load(Path("params.yaml"))
    read = vars(gpu.recipe())
    read["adversarial"] = vars(read["adversarial"])
    assert read == settings.train.model_dump()
    assert gpu._structure() == settings.net.name


def test_its_resnet50_has_the_parameters_of_the_known_one():
    with torch.device("meta"):
        net = create(gpu.LARGE, in_channels=3, num_classes=gpu.LARGE_CLASSES)
    assert sum(parameter.numel() for parameter in net.parameters()) == 25_557_032  # torchvision's table of models
