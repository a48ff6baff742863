"""Damaged files of strangers are read or refused in one line: a few of each kind, as benchmarks/fuzz.py tries many."""

import json
import runpy
from pathlib import Path

import pytest

from tests.conftest import ROOT

FUZZ = runpy.run_path(str(ROOT / "benchmarks/fuzz.py"))
KINDS = FUZZ["kinds"]()
# What is tried in a process of its own takes a good part of a second.
INPUTS = {"tokenizers": 3, "rows, Parquet": 3}


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    inputs = INPUTS.get(name, 50)
    found = FUZZ["fuzz"](KINDS[name], tmp_path, seed=0, inputs=inputs)
    assert (found["inputs"], found["crashes"]) == (inputs, 0), found["first"]


def test_what_fails_is_counted(tmp_path: Path) -> None:
    kind = FUZZ["Kind"]("a.json", {"a": 1}, lambda path: 1 / json.loads(path.read_text())["a"])
    found = FUZZ["fuzz"](kind, tmp_path, seed=0, inputs=20)
    assert found["crashes"] > 10
    assert found["refused"] == 0
