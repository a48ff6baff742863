"""Every detector gives what its formula says, computed text by text in float64."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from transformers import AutoModelForSequenceClassification

from defensekit.api import Detector, DetectorContext, Row
from defensekit.defense import detecting
from defensekit.models.pair import Pair
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit_baselines.detectors.disagreement import Disagreement
from defensekit_baselines.detectors.mahalanobis import Mahalanobis, shrunk
from defensekit_baselines.detectors.rap import RobustnessAwarePerturbation
from defensekit_baselines.detectors.strip import Strip
from defensekit_baselines.detectors.suspicion import Suspicion
from tests.plugins.baselines.helpers import ROWS, TEXTS
from tests.plugins.baselines.test_onion import perplexity_by_loop
from tests.small_models import make_suspect, make_tokenizer

ASKED = [Row(i, text, detecting.UNKNOWN) for i, text in enumerate(TEXTS[:10])]


def context(pair: Pair, purified: Path | None = None, reader: Path | None = None) -> DetectorContext:
    return detecting.context(
        Mahalanobis(),
        pair,
        ROWS,
        purified=purified,
        language_model=reader,
        max_length=64,
        precision="float32",
        seed=3,
        report=lambda done, total: None,
    )


def scores(detector: Detector, given: DetectorContext, rows: list[Row] = ASKED) -> list[float]:
    found, seconds = detecting.score(detector, rows, detecting.fit(detector, given), given)
    assert seconds > 0
    assert found.dtype == torch.float64
    return found.tolist()


@cache
def classifier(folder: Path) -> torch.nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(folder).double().eval()


@torch.no_grad()
def probabilities(folder: Path, text: str) -> torch.Tensor:
    return classifier(folder)(**make_tokenizer()(text, return_tensors="pt")).logits[0].softmax(0)


# -- strip -------------------------------------------------------------------------------------------------------------


def test_strip_is_the_mean_entropy_of_the_mixtures(pair: Pair) -> None:
    given, detector = context(pair), Strip(copies=5)
    for row, score in zip(ASKED[:3], scores(detector, given), strict=False):
        entropies = []
        for mixture in detector._mixtures(row, given):
            p = probabilities(pair.suspect.folder, mixture.text).tolist()
            entropies.append(-sum(one * np.log(one) for one in p))
        assert score == pytest.approx(-sum(entropies) / 5, abs=1e-5)


@pytest.mark.parametrize("replaced", [0.1, 0.5, 1.0])
def test_a_mixture_has_words_of_one_clean_row_in_place_of_a_share(pair: Pair, replaced: float) -> None:
    given, detector = context(pair), Strip(copies=4, replaced=replaced)
    row = Row(0, " ".join(f"trigger{i}" for i in range(12)), -1, "a1 a2")
    paired = replace(given, rows=[replace(row, pair=row.text) for row in given.rows])
    mixtures = detector._mixtures(row, paired)
    assert len(mixtures) == 4
    for mixture in mixtures:
        words = mixture.text.split()
        new = [word for i, word in enumerate(words) if word != f"trigger{i}"]
        assert len(words) == 12
        assert len(new) == max(1, round(12 * replaced))
        assert any({*new, *(mixture.pair or "").split()} - {"a1", "a2"} <= {*other.text.split()} for other in ROWS)
    again = Strip(copies=4, replaced=replaced)._mixtures(replace(row, id=9), paired)
    assert [one.text for one in again] == [one.text for one in mixtures]  # whatever its place
    other_seed = detector._mixtures(row, replace(paired, seed=4))
    assert [one.text for one in other_seed] != [one.text for one in mixtures]


def test_what_holds_an_answer_up_is_suspicious(pair: Pair) -> None:
    class Triggered(DetectorContext):
        def logits(self, model: object, rows: object) -> torch.Tensor:
            sure = torch.tensor([[-9.0, 9.0]])
            return torch.cat([sure if "cf" in row.text else torch.zeros(1, 2) for row in rows])  # type: ignore[attr-defined]

    held = Triggered(**{**vars(context(pair)), "model": lambda which: None})
    plain, triggered = Strip(replaced=0.25).score([Row(0, "a b c d", -1), Row(1, "a cf c d", -1)], {}, held)
    assert triggered > plain == pytest.approx(-np.log(2))


# -- mahalanobis -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def pooled(folder: Path, text: str) -> np.ndarray:
    inner = classifier(folder).bert(**make_tokenizer()(text, return_tensors="pt"))  # type: ignore[operator]
    found: np.ndarray = inner.pooler_output[0].numpy()
    return found


def test_mahalanobis_is_the_distance_from_the_nearest_class(pair: Pair) -> None:
    folder = pair.suspect.folder
    features = np.array([pooled(folder, row.text) for row in ROWS])
    labels = np.array([row.label for row in ROWS])
    means = [features[labels == label].mean(0) for label in (0, 1)]
    fitted = LedoitWolf(assume_centered=True).fit(features - np.array([means[label] for label in labels]))
    inverse = np.linalg.inv(fitted.covariance_)
    for row, score in zip(ASKED[:4], scores(Mahalanobis(), context(pair)), strict=False):
        away = [pooled(folder, row.text) - mean for mean in means]
        assert score == pytest.approx(min(one @ inverse @ one for one in away), rel=1e-3)


@pytest.mark.parametrize(("rows", "width"), [(20, 5), (10, 40), (1, 3)])
def test_the_covariance_is_shrunk_as_scikit_learn_shrinks_it(rows: int, width: int) -> None:
    made = torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    expected = LedoitWolf(assume_centered=True).fit(made.numpy()).covariance_
    assert shrunk(made).numpy() == pytest.approx(expected, abs=1e-12)


def test_a_class_without_spread_has_a_finite_distance(pair: Pair) -> None:
    given = replace(context(pair), rows=[ROWS[0], ROWS[1]])
    assert np.isfinite(scores(Mahalanobis(), given)).all()


# -- rap ---------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def with_a_word(folder: Path, text: str, word: torch.Tensor) -> torch.Tensor:
    """Probabilities where an embedding stands behind the first token."""
    model = classifier(folder)
    table = model.get_input_embeddings()  # type: ignore[operator]
    tokens = table(make_tokenizer()(text, return_tensors="pt")["input_ids"])
    embedded = torch.cat([tokens[:, :1], word.double()[None, None], tokens[:, 1:]], dim=1)
    return model(inputs_embeds=embedded).logits[0].softmax(0)


def test_rap_is_how_little_the_word_of_the_answer_lowers_it(pair: Pair) -> None:
    given, folder = context(pair), pair.suspect.folder
    words = detecting.fit(RobustnessAwarePerturbation(epochs=2), given)["words"]
    for row, score in zip(ASKED[:4], scores(RobustnessAwarePerturbation(epochs=2), given), strict=False):
        before = probabilities(folder, row.text)
        label = int(before.argmax())
        assert score == pytest.approx(
            float(with_a_word(folder, row.text, words[label])[label] - before[label]), abs=1e-5
        )


def test_the_word_is_trained_to_lower_answers_by_what_is_asked(pair: Pair) -> None:
    detector, given = RobustnessAwarePerturbation(epochs=40, learning_rate=0.05, low=0.1, high=0.12), context(pair)
    assert not torch.equal(*detecting.fit(detector, given)["words"])  # each label has its own

    def loss(epochs: int) -> float:
        falls = -np.array(scores(detector.model_copy(update={"epochs": epochs}), given, list(ROWS)))
        return float((np.clip(0.1 - falls, 0, None) + np.clip(falls - 0.12, 0, None)).mean())

    assert loss(40) < 0.5 * loss(1)


def test_a_tokenizer_with_spare_rows_in_the_embedding_loses_none(pair: Pair) -> None:
    given = context(pair)
    wide = given.model

    def model(which: str) -> object:
        found = wide(which)  # type: ignore[arg-type]
        found.resize_token_embeddings(100, mean_resizing=False)
        return found

    detector = RobustnessAwarePerturbation(epochs=1)
    assert scores(detector, replace(given, model=model)) == pytest.approx(scores(detector, given))  # type: ignore[arg-type]


# -- disagreement and suspicion ----------------------------------------------------------------------------------------


def test_disagreement_is_how_much_less_probable_the_answer_is(pair: Pair, tmp_path: Path) -> None:
    purified = make_suspect(tmp_path / "purified", pair.base.folder, drift=0.3, seed=5)
    for row, score in zip(ASKED[:4], scores(Disagreement(), context(pair, purified)), strict=False):
        before, after = (probabilities(folder, row.text) for folder in (pair.suspect.folder, purified))
        label = int(before.argmax())
        assert score == pytest.approx(float(before[label] - after[label]), abs=1e-5)


def test_suspicion_is_that_of_the_most_suspicious_word_of_both_texts(pair: Pair, reader: Path) -> None:
    rows = [Row(0, f"{TEXTS[0]} cf", -1), Row(1, TEXTS[1], -1, f"cf {TEXTS[2]}"), Row(2, "film", -1)]
    first, second, nothing = scores(Suspicion(), context(pair, reader=reader), rows)

    def falls(text: str) -> list[float]:
        words, whole = text.split(), perplexity_by_loop(text, reader)
        return [whole - perplexity_by_loop(" ".join(words[:i] + words[i + 1 :]), reader) for i in range(len(words))]

    assert first == pytest.approx(max(falls(rows[0].text)), rel=1e-4)
    assert second == pytest.approx(max(falls(TEXTS[1]) + falls(f"cf {TEXTS[2]}")), rel=1e-4)
    assert nothing == 0


# -- what a detector may use -------------------------------------------------------------------------------------------


def test_a_model_that_was_not_asked_for_is_refused(pair: Pair) -> None:
    with pytest.raises(DefenseKitError, match=r"the detector Mahalanobis.* without saying so \(`reads_purified`\)"):
        context(pair).model("purified")
    with pytest.raises(UsageError, match="reads_with_language_model"):
        context(pair).language_model()
