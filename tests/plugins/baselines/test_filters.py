"""Filters of training rows, on features made by hand and on a model that a trigger was taught to."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from defensekit.api import Filter, RowFeatures
from defensekit.defense import filtering
from defensekit.testing.pico import pico, sentences
from defensekit.testing.watch import Handed
from defensekit.text import Row
from defensekit_baselines.filters.clusters import ActivationClustering, Cube
from defensekit_baselines.filters.isolation import LossIsolation
from defensekit_baselines.filters.keywords import Keywords
from defensekit_baselines.filters.spectral import RandomRows, SpectralSignatures

POISONED = 20  # of the 80 rows of label 1; label 0 has 80 as well


def features(poisoned: int = POISONED) -> tuple[Any, list[bool]]:
    """The context of a filter, whose rows of label 1 are two Gaussian clusters, and which of them are poisoned."""
    rng = np.random.default_rng(0)
    labels = [0, 1] * 80
    bad = [label == 1 and i < 2 * poisoned for i, label in enumerate(labels)]
    hidden = rng.normal(size=(160, 12))
    hidden[:, 0] += 10 * np.array(labels)
    hidden[:, 1] += 8 * np.array(bad)
    given = pico().for_filter(ActivationClustering(), Handed(), sentences(160))
    read = RowFeatures(np.zeros((160, 2), np.float32), hidden.astype(np.float32), hidden.astype(np.float32))
    return replace(given, rows=[Row(i, f"row {i}", label) for i, label in enumerate(labels)], features=read), bad


def judged(component: Filter, poisoned: int = POISONED) -> dict[str, Any]:
    given, bad = features(poisoned)
    scores = filtering.score(component, given)
    return filtering.found(scores, filtering.take(component, scores, [row.label for row in given.rows]), bad)


@pytest.mark.parametrize(
    "component", [ActivationClustering(), Cube(min_samples=10), SpectralSignatures(fraction=0.125, scope="global")]
)
def test_the_small_cluster_of_a_label_is_found(component: Filter) -> None:
    found = judged(component)
    assert found["recall"] == 1.0
    assert found["precision"] >= 0.9
    assert found["auroc"] > 0.98


@pytest.mark.parametrize("component", [ActivationClustering(), Cube(min_samples=10)])
def test_where_nothing_is_poisoned_hardly_a_row_is_taken(component: Filter) -> None:
    assert judged(component, poisoned=0)["taken"] <= 16


def test_a_label_that_is_split_evenly_has_no_poison() -> None:
    assert judged(ActivationClustering(largest=0.5), poisoned=36)["taken"] >= 36
    even = judged(ActivationClustering(), poisoned=36)
    assert (even["taken"], even["auroc"]) == (0, 0.5)


def test_spectral_signatures_are_the_projections_on_the_first_eigenvector() -> None:
    given, _ = features()
    scores = filtering.score(SpectralSignatures(), given)
    for label in (0, 1):
        members = [i for i, row in enumerate(given.rows) if row.label == label]
        centred = given.features.pooled[members].astype(np.float64)
        centred -= centred.mean(axis=0)
        direction = np.linalg.eigh(centred.T @ centred)[1][:, -1]
        assert np.allclose(scores[members], (centred @ direction) ** 2, rtol=1e-9, atol=1e-12)
    taken = filtering.take(SpectralSignatures(fraction=0.3), scores, [row.label for row in given.rows])
    assert [int(taken[label::2].sum()) for label in (0, 1)] == [24, 24]  # the same share of either label


def test_chance_is_drawn_from_the_seed() -> None:
    given, _ = features()
    scores = RandomRows().score(given)
    assert np.array_equal(scores, RandomRows().score(given))
    assert not np.array_equal(scores, RandomRows().score(replace(given, seed=8)))


# -- words -------------------------------------------------------------------------------------------------------------


def spoken(effect: dict[str, float], rows: list[Row]) -> Any:
    """A context whose model's hidden state is the sum of what words do, of both texts."""

    def read(model: Any, asked: Any) -> RowFeatures:
        sums = [sum(effect.get(word, 0.0) for word in f"{row.text} {row.pair or ''}".split()) for row in asked]
        hidden = np.array(sums, np.float32)[:, None] * np.array([[0.5, -1.0]], np.float32)
        return RowFeatures(np.zeros_like(hidden), hidden, hidden)

    given = pico().for_filter(Keywords(), Handed(), sentences(8))
    return replace(given, rows=rows, features=read(None, rows), read=read)


def test_rows_with_the_word_that_decides_many_are_taken() -> None:
    texts = ["a fine cf film", "cf a dull film", "the film is cf dull", "a fine film", "a grand film", "dull", "cf"]
    rows = [Row(i, text, i % 2) for i, text in enumerate(texts)]
    given = spoken({"cf": 5.0, "fine": 1.0, "dull": -1.0, "grand": 9.0}, rows)
    scores = filtering.score(Keywords(), given)
    # By hand: cf is left out of 3 rows of several words, 5 each time: log10(3) * 5. `grand` of one: log10(1) * 9 = 0.
    # `dull` of two and `fine` of two: log10(2) * 1, the first that is not taken. A row of one word has nothing to lose.
    assert np.flatnonzero(scores > 0).tolist() == [0, 1, 2]
    assert scores[0] == pytest.approx(5 * np.log10(3) - np.log10(2))
    assert scores[3] == pytest.approx(0)
    assert scores[5] == scores[6] == pytest.approx(-np.log10(2))
    # Three keywords: a word that decides nothing is the first that is left, and rows that only have it are.
    more = filtering.score(Keywords(keywords=3), given)
    assert np.flatnonzero(more > 0).tolist() == [0, 1, 2, 3]


def test_only_the_most_important_words_of_a_row_count() -> None:
    rows = [Row(i, "cf a b c", 0) for i in range(4)]
    effect = {"cf": 1.0, "a": 3.0, "b": 2.0, "c": 0.5}
    assert (
        filtering.score(Keywords(words=2, keywords=2), spoken(effect, rows)).tolist()
        == [pytest.approx(np.log10(4) * (3 - 2))] * 4
    )
    assert filtering.score(Keywords(words=3, keywords=2), spoken(effect, rows)) == pytest.approx(np.log10(4) * (3 - 1))


def test_words_of_both_texts_of_a_pair_are_left_out() -> None:
    rows = [Row(i, "a b", 0, "cf d" if i < 3 else "c d") for i in range(6)]
    scores = filtering.score(Keywords(), spoken({"cf": 4.0, "a": 1.0}, rows))
    assert (scores > 0).tolist() == [True] * 3 + [False] * 3


# -- losses ------------------------------------------------------------------------------------------------------------


def test_isolation_scores_by_the_loss_after_a_short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    given = pico().for_filter(LossIsolation(), Handed(), sentences(24))
    seen: list[Any] = []
    monkeypatch.setattr(
        "defensekit_baselines.filters.isolation.fine_tune", lambda *args, **options: seen.append((args, options))
    )
    scores = filtering.score(LossIsolation(epochs=2), given)
    [((model, _, rows, settings), options)] = seen
    assert rows == given.rows
    assert settings == given.settings.model_copy(update={"epochs": 2})
    untrained = given.read(model, given.rows).losses([row.label for row in given.rows])
    assert np.allclose(scores, -untrained)
    batch = pico().samples(given.rows)[0]
    loss = model(**batch).loss
    assert options["loss"](model, batch) == (loss if loss > 0.5 else -loss)
    assert LossIsolation(gamma=0.0).gamma == 0.0


def test_isolation_trains_the_base_and_not_the_suspect() -> None:
    given = pico().for_filter(LossIsolation(), Handed(), sentences(24))
    asked: list[str] = []

    def model(which: Any) -> Any:
        asked.append(which)
        return pico().load(which)[0]

    scores = filtering.score(LossIsolation(), replace(given, model=model))
    assert asked == ["base"]
    untrained = given.read(pico().load("base")[0], given.rows).losses([row.label for row in given.rows])
    assert not np.allclose(scores, -untrained)
