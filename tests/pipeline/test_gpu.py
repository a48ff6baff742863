"""A run where there is a GPU, and the script that measures one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import defensekit
from tests.conftest import ROOT, shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_run_is_computed_there_and_says_so(recipe: Path, tmp_path: Path) -> None:
    result = defensekit.run(shape(recipe, defense__choose=None), tmp_path / "w")
    assert result.environment.device.startswith("cuda")
    assert result.models["suspect"].metrics["excess-asr"].value > 0.5
    assert result.models["purified"].metrics["acc"].rows


@pytest.mark.slow
def test_the_script_for_a_gpu_can_be_tried_without_one(tmp_path: Path) -> None:
    environment = {**os.environ, "TRIAL": "1", "OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", ROOT / "benchmarks/gpu.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("machine", "tests", "kernel", "run", "streaming", "row")
    ]
    assert json.loads((tmp_path / "kernel.out").read_text())["layers"]
