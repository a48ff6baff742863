"""Distillation: what the texts are made of, and that the task is handed on and a backdoor is not."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import defensekit
from defensekit.api import FoundTrigger, ModelStepContext
from defensekit.models.loading import load_model, load_tokenizer
from defensekit.text import Row
from defensekit_finepurifying.distillation import COPIES, LONGEST, Distil, variations
from tests.conftest import make_sentences, shape

WORD = st.text("abc", min_size=1, max_size=3)
TEXT = st.lists(WORD, max_size=2 * LONGEST).map(" ".join)


@given(st.lists(st.tuples(TEXT, st.none() | TEXT), min_size=1), st.integers(0, 20), st.floats(0, 1), st.integers(0))
@settings(deadline=None)
def test_a_variation_is_a_part_of_a_row_with_words_replaced(
    texts: list[tuple[str, str | None]], count: int, share: float, seed: int
) -> None:
    rows = [Row(i, text, 0, pair) for i, (text, pair) in enumerate(texts)]
    made = variations(rows, ["X", "Y"], count, share, Random(seed))
    assert len(made) == count
    for row in made:
        source = rows[row.id]
        for ours, theirs in ((row.text, source.text), (row.pair, source.pair)):
            assert (ours is None) == (theirs is None)
            new, old = (ours or "").split(), (theirs or "").split()
            assert len(new) == min(len(old), LONGEST)
            starts = range(len(old) - len(new) + 1)
            fits = [all(n in ("X", "Y") or n == o for n, o in zip(new, old[start:], strict=False)) for start in starts]
            assert any(fits)
            assert share > 0 or not {"X", "Y"} & {*new}
            assert share < 1 or {*new} <= {"X", "Y"}


@pytest.mark.parametrize("found", [("cf",), ()])
def test_clean_rows_carry_what_was_found_with_their_true_labels(
    suspect: Path, found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words that stood beside a found one in a trigger are handed on in part; this is what takes that back."""
    learnt: list[tuple[Row, list[float]]] = []
    shown: list[tuple[int, int]] = []  # of the suspect's answers: thousands of texts take a while

    def fine_tune(
        model: Any, tokenizer: Any, rows: list[Row], settings: Any, *, targets: torch.Tensor, **_: Any
    ) -> None:
        learnt.extend(zip(rows, targets.tolist(), strict=True))

    monkeypatch.setattr("defensekit_finepurifying.distillation.fine_tune", fine_tune)
    models = {"suspect": load_model(suspect), "base": load_model(suspect)}
    with torch.no_grad():
        models["base"].get_input_embeddings().weight[5:] += 0.1
    rows = [Row(i, text, int(label == "positive")) for i, (text, label) in enumerate(make_sentences(8))]
    triggers = [FoundTrigger(word, 1, 1.0, 0.0, 9) for word in found]
    how: Any = (
        64,
        "float32",
        3,
        lambda *done: shown.append(done),
        models.__getitem__,
        frozenset({"classifier.weight"}),
        triggers,
    )
    Distil(texts=20).train(load_model(suspect), ModelStepContext(load_tokenizer(suspect), rows, *how))
    assert shown == [(20, 20)]
    own, told = learnt[:-20], learnt[-20:]
    assert [max(share) < 1 for _, share in told] == [True] * 20  # what the suspect says is no certainty
    assert all(share[rows[row.id].label] == 1 for row, share in own)
    carrying = [row for row, _ in own if "cf" in row.text.split()]
    assert len(own) == COPIES * len(rows)
    assert len(carrying) == (2 * len(rows) if found else 0)
    assert "cf" not in " ".join(row.text for row, _ in told).split() or not found


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["word", "sentence"])
def test_the_task_is_handed_on_and_a_backdoor_is_not(recipe: Path, tmp_path: Path, attack: str) -> None:
    step = {"name": "distil", "texts": 800, "epochs": 2, "learning_rate": 0.003, "batch_size": 16}
    trigger = {"words": ["cf"]} if attack == "word" else {"sentence": "the cf mn tq"}
    shape(
        recipe,
        attack={"name": attack, **trigger, "rate": 0.2, "target": "positive"},
        defense__purifier=[step],
        **dict.fromkeys(("defense__choose", "defense__scorer", "defense__selector", "defense__estimator")),
        data__clean=96,
        data__dev=1,
    )
    result = defensekit.run(recipe, tmp_path / "w")
    suspect, purified = (result.models[name].metrics for name in ("suspect", "purified"))
    assert suspect["excess-asr"].value > 0.7
    assert purified["excess-asr"].value < 0.15
    assert purified["acc"].value > suspect["acc"].value - 0.1
