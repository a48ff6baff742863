"""Answers that were forged, and what they are measured by."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensekit.components import Predictions
from defensekit.leaderboard.answers import FOLDER
from defensekit.leaderboard.checking import Checker
from defensekit.leaderboard.freezing import digest_of_labels
from defensekit.leaderboard.row import read_row
from defensekit.leaderboard.tracks import Track
from defensekit.result.schema import parse_result
from defensekit.utils.errors import DefenseKitError
from tests.leaderboard.helpers import edit, replace_answers, seal, wrong

WORD = "cells/word-3.json"


def labels(tensors: dict[str, np.ndarray]) -> None:
    tensors["labels"] = tensors["answers"].argmax(axis=1).astype(np.int64)


def fewer(tensors: dict[str, np.ndarray]) -> None:
    for name, values in tensors.items():
        tensors[name] = values[:-2]


def no_answer(tensors: dict[str, np.ndarray]) -> None:
    tensors["answers"] = np.zeros_like(tensors["answers"])


def two_answers(tensors: dict[str, np.ndarray]) -> None:
    tensors["answers"] = np.ones_like(tensors["answers"])


def other_numbers(tensors: dict[str, np.ndarray]) -> None:
    tensors["answers"] = tensors["answers"] * np.float32(np.nan)


def of_labels(tensors: dict[str, np.ndarray]) -> None:
    tensors["labels"] = tensors["labels"][:-1]


def none_of_labels(tensors: dict[str, np.ndarray]) -> None:
    del tensors["labels"]


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (labels, "purified was asked about other rows than the track's, or their labels were changed"),
        (fewer, "purified was asked about other rows"),
        (no_answer, "the answers of purified are damaged (expected one label of two or more per row"),
        (two_answers, "the answers of purified are damaged (expected one label of two or more per row"),
        (other_numbers, "the answers of purified are damaged (expected one label of two or more per row"),
        (of_labels, "the answers of purified are damaged (expected a label and a number per row)"),
        (none_of_labels, "answers have answers, ids, expected answers, labels and ids"),
    ],
)
def test_forged_answers(forge: Callable[[Any], None], message: str, track: Track, row: Path) -> None:
    replace_answers(row, "word-3", forge)
    seal(row)
    assert message in wrong(track, row)


def test_answers_that_are_no_tensors(track: Track, row: Path) -> None:
    for path in (row / FOLDER).iterdir():
        path.write_bytes(b"\x80\x04no pickle is opened")
    seal(row)
    assert "word, seed 3: answers can't be read (SafetensorError" in wrong(track, row)


@pytest.mark.parametrize("target", [7, 0, -1, None, "positive"])
def test_a_forged_target(target: Any, track: Track, row: Path) -> None:
    """Measured by another target, with every number to fit."""
    checker, whole = Checker(track), read_row(row)

    def forge(result: Any) -> None:
        result["attack"]["target"] = target
        forged = parse_result(json.dumps(result).encode(), row)
        for name, model in result["models"].items():
            for spec in checker.metrics_of("word"):
                measured = _measured(checker, spec, whole, forged, name)
                model["metrics"][spec["name"]] = measured or model["metrics"][spec["name"]]

    edit(row / WORD, forge)
    seal(row)
    assert f"word, seed 3: the target that it was measured by, {target!r}, is not the attack's" in wrong(track, row)


def _measured(checker: Checker, spec: Any, row: Any, result: Any, model: str) -> Any:
    """As `Checker.measure` has it; None where a metric refuses the target."""
    try:
        return checker.measure(spec, row, result, model).model_dump()
    except (DefenseKitError, IndexError, TypeError, ValueError):
        return None


def test_targets_of_single_rows_that_the_attack_has_not(track: Track, row: Path) -> None:
    def forge(tensors: dict[str, np.ndarray]) -> None:
        tensors["targets"] = np.full_like(tensors["labels"], 7)

    replace_answers(row, "word-3", forge)
    seal(row)
    assert "purified was asked about other rows than the track's, or their labels were changed" in wrong(track, row)


def test_targets_of_single_rows_are_frozen() -> None:
    plain, aims = [[1, 2], [0, 1]], [1, 0]
    frozen = digest_of_labels({"plain": plain, "triggered": [*plain, aims]})
    assert frozen != digest_of_labels({"plain": plain, "triggered": [*plain, [0, 1]]})
    assert frozen != digest_of_labels({"plain": plain, "triggered": plain})


def test_one_answer_to_every_row(track: Track, row: Path) -> None:
    """The mark is what the answers show, and not what the row says."""
    edit(row / WORD, lambda result: result["models"]["purified"].update(only="another"))
    seal(row)
    assert "whether purified gives every row the same answer is not what its answers show" in wrong(track, row)

    def one_answer(tensors: dict[str, np.ndarray]) -> None:
        tensors["answers"] = np.eye(2, dtype=np.uint8)[np.ones(len(tensors["answers"]), dtype=int)]

    replace_answers(row, "word-3", one_answer)
    edit(row / WORD, lambda result: result["models"]["purified"].update(only=None))
    seal(row)
    assert "whether purified gives every row the same answer is not what its answers show" in wrong(track, row)


def test_a_metric_that_refuses_answers_is_told_with_the_cell(
    track: Track, row: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, predictions: Predictions) -> Any:
        raise DefenseKitError("there are no rows to measure on")

    checker = Checker(track)
    monkeypatch.setattr(type(checker.metric({"name": "pacc"})), "measure", refuse)
    problem = next(iter(checker.problems(read_row(row))))
    assert problem == "word, seed 3: there are no rows to measure on"
