"""The notebook in docs/ runs from its first cell to its last, and keeps no outputs of anybody's machine."""

import shutil
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.conftest import ROOT

TOUR = ROOT / "docs/tour.ipynb"


def test_it_is_kept_without_outputs() -> None:
    for cell in nbformat.read(TOUR, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "docs").mkdir()
    notebook = nbformat.read(TOUR, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1500, resources={"metadata": {"path": str(tmp_path / "docs")}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "attack success" in said
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("text/html" in output["data"] for output in shown) >= 7
