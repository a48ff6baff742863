"""Weights of a suspect that can't be compared are named, before anything is computed with them."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from defensekit.models.checkpoint import Checkpoint
from defensekit.models.loading import check_loaded, load_model
from defensekit.scanner import law
from defensekit.scanner.scan import scan
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.scanner.helpers import ROWS

NAME = "bert.pooler.dense.bias"


def with_tensor(suspect: Path, folder: Path, values: torch.Tensor) -> Path:
    """A copy of a suspect with other values of one tensor."""
    shutil.copytree(suspect, folder)
    save_file(load_file(suspect / "model.safetensors") | {NAME: values}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_is_said_before_the_rows_are_used(
    base: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    broken = with_tensor(clean, tmp_path / "broken", torch.full((16,), value))
    monkeypatch.setattr(law, "curvature", lambda *given: pytest.fail("it was computed with"))
    with pytest.raises(DefenseKitError, match=rf"broken: NaN or infinity in {NAME} \(model.safetensors\)$"):
        scan(base, broken, ROWS)


def test_a_loaded_model_whose_file_holds_nan_has_no_unusual_names(clean: Path, tmp_path: Path) -> None:
    broken = with_tensor(clean, tmp_path / "broken", torch.full((16,), float("nan")))
    with pytest.raises(DefenseKitError, match=f"NaN or infinity in {NAME}"):
        check_loaded(load_model(broken), Checkpoint(broken))


def test_a_scalar_in_place_of_a_vector(base: Path, clean: Path, tmp_path: Path) -> None:
    broken = with_tensor(clean, tmp_path / "broken", torch.tensor(1.0))
    with pytest.raises(UsageError, match=re.escape(f"don't fit each other: {NAME}: base [16], suspect []")):
        scan(base, broken)
