"""A track, an entry and its plugin as data; and forgeries of a row."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from defensekit.cli.leaderboard import app
from defensekit.leaderboard.answers import answers_file
from defensekit.leaderboard.checking import Checker
from defensekit.leaderboard.row import PACK, RECORD, unpacked
from defensekit.leaderboard.tracks import Track
from defensekit.pipeline.identity import identity
from defensekit.utils.errors import DefenseKitError
from defensekit.utils.files import file_digests

_ATTACK = {"target": "positive", "rate": 0.3, "position": "random"}
TRACK: dict[str, Any] = {
    "name": "tiny-v1",
    "about": "Of tests.",
    "recipe": {
        "data": {"name": "file", "path": "rows.csv", "train": 48, "clean": 16, "dev": 8, "test": 24, "max_length": 32},
        "training": {"epochs": 1, "learning_rate": 0.005, "batch_size": 16},
        "precision": "float32",
        "metrics": ["acc", "asr", "excess-asr", "pacc"],
    },
    "attacks": {"word": {"name": "word", "words": ["cf"], **_ATTACK}},
    "unpoisoned": {"name": "unpoisoned", "target": "positive", "word": "cf"},
    "seeds": [3],
    "budget": {"labelled": 24, "minutes": 1},
    "tolerance": {"answers": 0.05},
}
ENTRY: dict[str, Any] = {
    "name": "twelve",
    "title": "Twelve <b>lines</b>",
    "about": "Takes every dimension alike.",
    "authors": ["A. Nobody"],
    "links": ["https://example.org/paper"],
    "licence": "MIT",
    "needs": ["base", "labels"],
    "chosen_by": "Nothing was chosen.",
    "plugin": {"file": "twelve.py"},
    "defense": {
        "scorer": "twelve",
        "selector": {"name": "fraction", "fraction": 0.5},
        "purifier": ["reset", {"name": "fine-tune", "epochs": 1, "learning_rate": 0.003, "batch_size": 8}],
    },
}
# Whoever imports it leaves a trace.
PLUGIN = '''\
import os
from pathlib import Path

from defensekit.api import hookimpl, scorer

if "TRACE" in os.environ:
    Path(os.environ["TRACE"]).write_text("imported")


@scorer()
def twelve(t):
    """The same for every dimension, but for ties."""
    return t.drift.abs()


@hookimpl
def defensekit_scorers():
    return {"twelve": twelve}
'''


def copied(row: Path, name: str) -> Path:
    """The same row under another name, beside it."""
    other = shutil.copytree(row, row.parent / name)
    entry = yaml.safe_load((other / "entry.yaml").read_text())
    (other / "entry.yaml").write_text(yaml.safe_dump({**entry, "name": name}))
    (other / RECORD).write_text((other / RECORD).read_text().replace('"entry": "twelve"', f'"entry": "{name}"'))
    seal(other)
    return other


def wrong(track: Track, row: Path) -> str:
    """The first thing that is wrong with a row."""
    with pytest.raises(DefenseKitError) as error:
        Checker(track).check(row)
    return str(error.value)


def said(*arguments: Any) -> tuple[str, str]:
    """What `defensekit leaderboard` prints here, and the error that it ends with."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.stdout, str(done.exception or "")


def loose(row: Path, target: Path) -> Path:
    """A copy of a row that is not packed, to be changed."""
    shutil.copytree(row, target)
    for name, data in unpacked((target / PACK).read_bytes(), target / PACK).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    (target / PACK).unlink()
    return target


def seal(row: Path) -> None:
    """Write the digests of a row's files again, as a forger would."""
    record = json.loads((row / RECORD).read_text())
    digests = file_digests(row)
    record["files"] = {
        name: digest for name, digest in digests.items() if name != RECORD and not name.startswith("verifications")
    }
    (row / RECORD).write_text(json.dumps(record))


def cells(row: Path) -> list[Path]:
    return sorted((row / "cells").glob("*.json"))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change a cell's result; its identity is computed again."""
    result = json.loads(path.read_text())
    change(result)
    result["identity"] = identity(result["identified"])
    path.write_text(json.dumps(result))


def edit_all(row: Path, change: Callable[[Any], None]) -> None:
    for path in cells(row):
        edit(path, change)


def replace_answers(
    row: Path, cell: str, change: Callable[[dict[str, np.ndarray]], None], models: tuple[str, ...] = ("purified",)
) -> None:
    """Change the answers of a cell's models."""
    result = json.loads((row / f"cells/{cell}.json").read_text())
    for name in models:
        for key in result["models"][name]["predictions"].values():
            path = row / answers_file(key)
            tensors = load_file(path)
            change(tensors)
            save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
