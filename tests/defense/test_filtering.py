"""Filters: which rows they remove, what they may see, and how a wrong filter is reported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defensekit.api import Filter, RowFeatures
from defensekit.defense import filtering
from defensekit.models import loading
from defensekit.text import Row
from defensekit.training import TrainingSettings
from defensekit.utils.errors import DefenseKitError
from tests.conftest import slow_but
from tests.small_models import ARCHITECTURES, make_base, make_suspect


class Handed(Filter):
    """Gives what its parameter says, of `c`, the context."""

    says: str

    def score(self, context: Any) -> Any:
        return eval(self.says, {"c": context, "np": np})


LABELS = [0, 0, 0, 0, 1, 1, 1, 1]
SCORES = np.array([1.0, 5.0, 2.0, 5.0, 9.0, 7.0, 8.0, 6.0])
ROWS = [Row(-1 if i > 5 else 10 * i, f"film {i}", label) for i, label in enumerate(LABELS)]


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"threshold": 6.5}, [4, 5, 6]),
        ({"threshold": 6.0}, [4, 5, 6]),  # above, and not at
        ({"fraction": 0.25}, [4, 6]),
        ({"fraction": 0.25, "scope": "label"}, [1, 4]),  # of equal scores the first
        ({"fraction": 0.5, "scope": "label", "threshold": 100}, [1, 3, 4, 6]),
        ({"fraction": 0.0}, []),
        ({"threshold": 9.0}, []),
    ],
)
def test_the_highest_scores_are_taken(given: dict[str, Any], taken: list[int]) -> None:
    component = Handed(says="", **given)
    assert np.flatnonzero(filtering.take(component, SCORES, LABELS)).tolist() == taken


def test_a_filter_that_takes_every_row_is_named() -> None:
    with pytest.raises(DefenseKitError, match=r"the filter Handed of .* takes every row"):
        filtering.take(Handed(says="", threshold=0.0), SCORES, LABELS)


def context(base: Path, suspect: Path) -> Any:
    features = RowFeatures(*(np.zeros((8, width), np.float32) for width in (2, 3, 3)))
    return filtering.context(
        Handed(says=""), base, suspect, rows=ROWS, features=features, clean=ROWS[:2], labels=("negative", "positive"),
        settings=TrainingSettings(), max_length=16, precision="float32", seed=1, report=lambda done, total: None,
    )  # fmt: skip


def test_rows_do_not_tell_which_of_them_were_added(base: Path, suspect: Path) -> None:
    given = context(base, suspect)
    assert filtering.score(Handed(says="[row.id for row in c.rows]"), given).tolist() == list(range(8))
    assert [row.text for row in given.rows] == [row.text for row in ROWS]
    head, drawn = given.model("suspect").classifier.weight, given.model("base").classifier.weight
    assert not torch.equal(head, drawn)
    assert torch.equal(drawn, given.model("base").classifier.weight)


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("[1] * 7", r"gave scores of shape \[7\], expected \[8\]"),
        ("[1, 2, float('nan'), 4, 5, 6, 7, 8]", "gave row 2 a score of NaN or infinity"),
        ("1 / 0", "failed: ZeroDivisionError"),
        ("c.model('purified')", "asks for the model 'purified'; expected 'suspect', 'base'"),
    ],
)
def test_a_filter_that_goes_wrong_is_named(says: str, message: str, base: Path, suspect: Path) -> None:
    with pytest.raises(DefenseKitError, match=f"the filter Handed of .* {message}"):
        filtering.score(Handed(says=says), context(base, suspect))


def test_what_was_found_is_counted_by_hand() -> None:
    taken = np.array([False, True, False, True, True, False, False, False])
    found = filtering.found(SCORES, taken, [False, False, False, False, True, True, False, True])
    # Of 15 pairs of a poisoned row (9, 7, 6) and another (1, 5, 2, 5, 8), the first has the higher score in 13.
    expected = {"rows": 8, "taken": 3, "poisoned": 3, "precision": 1 / 3, "recall": 1 / 3, "auroc": 13 / 15}
    assert found == pytest.approx(expected)


def test_where_nothing_is_poisoned_or_taken_nothing_is_claimed() -> None:
    taken = SCORES > 6
    clean = filtering.found(SCORES, taken, [False] * 8)
    assert (clean["precision"], clean["recall"], clean["auroc"]) == (0.0, None, None)
    nothing = filtering.found(SCORES, taken & False, [True] * 4 + [False] * 4)
    assert (nothing["precision"], nothing["recall"]) == (None, 0.0)
    assert filtering.found(SCORES, taken, [True] * 8)["auroc"] is None


LEFT_TO_RIGHT = {"gpt2", "llama", "qwen2", "qwen3"}


@pytest.mark.parametrize("architecture", slow_but(ARCHITECTURES, "bert", "gpt2"))
def test_features_are_what_the_head_turns_into_answers(architecture: str, tmp_path: Path) -> None:
    suspect = make_suspect(tmp_path / "suspect", make_base(tmp_path / "base", architecture))
    model, tokenizer = loading.load(suspect, "suspect")
    rows = [Row(i, "the film is a long story " * (1 + i % 3), 0) for i in range(5)]
    read = filtering.Reading(tokenizer, 32, "float32").features(model, rows)
    head = [one for one in model.modules() if isinstance(one, torch.nn.Linear) and one.out_features == 2][-1]
    with torch.no_grad():
        answers = head.cpu()(torch.from_numpy(read.pooled)).numpy()
    assert np.allclose(answers, read.logits, atol=1e-5)
    inputs = tokenizer([row.text for row in rows], padding=True, return_tensors="pt").to(model.device)
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[-1].cpu()
    ends = inputs["attention_mask"].sum(1).cpu() - 1 if architecture in LEFT_TO_RIGHT else torch.zeros(5).long()
    assert np.allclose(read.hidden, states[torch.arange(5), ends], atol=1e-5)
    wanted = torch.nn.functional.cross_entropy(torch.from_numpy(read.logits), torch.tensor([0, 1, 0, 1, 0]))
    assert read.losses([0, 1, 0, 1, 0]).mean() == pytest.approx(float(wanted), rel=1e-5)
