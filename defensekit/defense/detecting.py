"""What detectors learn from clean rows, and the scores that they give to texts.

A detector gets texts alone: no labels, and nothing about the rows they come from.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensekit import training
from defensekit.components import Detector, DetectorContext, call_component, component_error, offering
from defensekit.defense import sanitizing
from defensekit.defense.estimation import Report, other_model
from defensekit.models import loading
from defensekit.models.pair import Pair
from defensekit.text import Row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

FITTED = "fitted.safetensors"
SCORES = "scores.safetensors"
UNKNOWN = -1  # the label of a row whose label a detector is not told


def context(
    detector: Detector,
    pair: Pair,
    rows: Sequence[Row],
    *,
    purified: Path | None,
    language_model: Path | None,
    max_length: int,
    precision: training.Precision,
    seed: int,
    report: Report,
) -> DetectorContext:
    """What a detector may use, with the folders of the purified and of the language model, if it reads them."""

    def model(which: str) -> "PreTrainedModel":
        if which != "purified":
            return other_model(pair, which)  # type: ignore[arg-type]
        if purified is None:
            raise component_error(detector, "reads the purified model without saying so (`reads_purified`)")
        return other_model(pair, purified)

    tokenizer = loading.load(pair.suspect.folder, "suspect")[1]
    reader = sanitizing.context(language_model, max_length=max_length, seed=seed, report=report)
    loads = offering(detector, model, "suspect", "base", "purified")
    return DetectorContext(
        loads, tokenizer, rows, max_length, precision, seed, report, reader.language_model, reader.positions
    )


def fit(detector: Detector, given: DetectorContext) -> "dict[str, Tensor]":
    """Let a detector learn from the clean rows.

    Raises:
        DefenseKitError: it gave something else than finite tensors by name.
    """
    import torch

    with training.forked_random(given.seed):
        fitted = dict(call_component(detector, detector.fit, given))
    for name, tensor in fitted.items():
        if not isinstance(tensor, torch.Tensor) or not bool(torch.isfinite(tensor).all()):
            raise component_error(detector, f"gave {name!r} that is no finite tensor")
    return {name: tensor.detach().cpu().contiguous() for name, tensor in fitted.items()}


def score(
    detector: Detector, rows: Sequence[Row], fitted: "Mapping[str, Tensor]", given: DetectorContext
) -> "tuple[Tensor, float]":
    """Let a detector score rows, and take the time.

    Returns:
        The scores, (rows,), in float64, and the seconds that they took without those in which models were loaded.

    Raises:
        DefenseKitError: it gave something else than a finite number for each row.
    """
    import torch

    loads = _Clock()
    timed = replace(given, model=loads.timed(given.model), language_model=loads.timed(given.language_model))
    hidden = [Row(i, row.text, UNKNOWN, row.pair) for i, row in enumerate(rows)]
    began = time.perf_counter()
    with training.forked_random(given.seed):
        scored = call_component(detector, detector.score, hidden, fitted, timed)
    seconds = time.perf_counter() - began - loads.seconds
    scores = torch.as_tensor(scored, dtype=torch.float64).detach().cpu()
    if scores.shape != (len(rows),) or not bool(torch.isfinite(scores).all()):
        gave = f"gave scores of shape {list(scores.shape)} for {len(rows)} rows, or one that is not finite"
        raise component_error(detector, f"{gave}; expected a number for each")
    return scores, seconds


class _Clock:
    """Sums up the seconds that calls take."""

    seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, whose seconds count."""

        def wrapped(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return wrapped
