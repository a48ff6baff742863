"""Checks of detectors: a number for each text, independent of the others."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from defensekit.components import Detector
from defensekit.defense.detecting import UNKNOWN
from defensekit.testing.kit import Inapplicable, Mismatch, Subject, check, expect, ordinary_use
from defensekit.testing.pico import PicoModels, sentences
from defensekit.testing.watch import Handed
from defensekit.text import Row

if TYPE_CHECKING:
    from torch import Tensor

UNUSUAL = ["", "   ", "film", "film \n film", "Ünïcode – “quotes” 世界", "the film is " * 40]


def _rows() -> list[Row]:
    """Texts as a run shows them."""
    texts = [*(row.text for row in sentences(6, seed=1)), *UNUSUAL]
    return [Row(i, text, UNKNOWN) for i, text in enumerate(texts)]


def _scores(
    detector: Detector, pico: PicoModels, fitted: "Mapping[str, Tensor]", rows: Sequence[Row]
) -> "Sequence[float] | Tensor":
    return detector.score(rows, fitted, pico.for_detector(detector, Handed()))


@ordinary_use(Detector)
def detect(detector: Detector, pico: PicoModels, handed: Handed) -> Any:
    """Learn from the clean rows, and score texts."""
    context, rows = pico.for_detector(detector, handed), handed.give("texts", _rows())
    fitted = handed.give("fitted", dict(detector.fit(context)))
    return {"fitted": fitted, "scores": detector.score(rows, fitted, context)}


@check(Detector)
def fits_tensors(subject: Subject) -> None:
    """`fit` returns finite tensors by name, which are stored before `score`."""
    import torch

    for name, tensor in subject.used.result["fitted"].items():
        expect(isinstance(tensor, torch.Tensor), f"expected a tensor as {name!r}, got {type(tensor).__name__}")
        expect(bool(torch.isfinite(tensor).all()), f"expected finite numbers in {name!r}")


@check(Detector)
def gives_a_number_for_each(subject: Subject) -> None:
    """`score` returns a finite number for each text, in order, of any text, and none for no texts."""
    fitted, rows = subject.used.result["fitted"], _rows()
    scores = list(subject.used.result["scores"])
    expect(len(scores) == len(rows), f"expected {len(rows)} numbers, got {len(scores)}")
    for row, score in zip(rows, scores, strict=True):
        expect(math.isfinite(score), f"expected a finite number for {row.text[:40]!r}, got {score}")
    expect(len(_scores(subject.component, subject.pico, fitted, [])) == 0, "expected no numbers for no texts")


@check(Detector)
def scores_one_text_at_a_time(subject: Subject) -> None:
    """The score of a text does not depend on the other texts or their order: in use there may be only one."""
    fitted, together = subject.used.result["fitted"], [float(score) for score in subject.used.result["scores"]]
    if len(together) != len(_rows()) or not all(map(math.isfinite, together)):
        raise Inapplicable("it does not return a number for each: see `gives-a-number-for-each`")
    for row, score in zip(_rows(), together, strict=True):
        [alone] = map(float, _scores(subject.component, subject.pico, fitted, [Row(0, row.text, UNKNOWN)]))
        # A batch's padding changes the last digits.
        if not math.isclose(alone, score, rel_tol=1e-3, abs_tol=1e-4):
            raise Mismatch(f"expected {score:.6g} for {row.text[:40]!r} asked alone, got {alone:.6g}")


@check(Detector)
def scores_pairs(subject: Subject) -> None:
    """A pair of texts has one score, as a single text has."""
    rows = [Row(i, row.text, UNKNOWN, "the film is long") for i, row in enumerate(_rows())]
    fitted = subject.used.result["fitted"]
    scores = list(_scores(subject.component, subject.pico, fitted, rows))
    expect(len(scores) == len(rows), f"expected {len(rows)} numbers for {len(rows)} pairs, got {len(scores)}")
