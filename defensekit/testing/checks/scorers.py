"""Checks of scorers: finite scores, in the intended order."""

from typing import Any

from defensekit.components import Scorer, tensors
from defensekit.defense import scoring
from defensekit.testing.kit import Inapplicable, Subject, check, expect, ordinary_use
from defensekit.testing.pico import PicoModels
from defensekit.testing.watch import Handed


@ordinary_use(Scorer)
def score(scorer: Scorer, pico: PicoModels, handed: Handed) -> Any:
    """Score every tensor with eligible dimensions."""
    views = pico.views(scorer.needs)
    shown = {name: views[name] for name in pico.pair.scope if bool(scorer.eligible(views[name]).any())}
    return {name: scorer.score(handed.give(name, view)) for name, view in shown.items()}


@check(Scorer)
def scores_are_finite_and_in_shape(subject: Subject) -> None:
    """Scores have the tensor's shape and are finite, for statistics of any magnitude and where they are 0."""
    scores = scoring.score(subject.pico.views(subject.component.needs), subject.component)
    for name in scores:
        scores[name]


@check(Scorer)
def higher_is_taken_first(subject: Subject) -> None:
    """Dimensions ordered by its author, from least to most suspicious, have ascending scores."""
    import torch

    if len(subject.order) < 2:
        raise Inapplicable("no order= was given, single dimensions from least to most suspicious")
    column = {key: torch.tensor([[float(one[key])] for one in subject.order]) for key in subject.order[0]}
    drift = column.pop("drift")
    base = torch.zeros_like(drift)

    def quantile(statistic: str, q: float) -> float:
        values = column[statistic]
        return float(values[values > 0].quantile(q))

    scores = subject.component.score(tensors.TensorView("encoder.weight", base, drift, 7, column, quantile)).flatten()
    for i, (low, high) in enumerate(zip(scores[:-1].tolist(), scores[1:].tolist(), strict=True)):
        pair = f"{subject.order[i + 1]} to score above {subject.order[i]}"
        expect(high > low, f"expected {pair}, got {high:g} and {low:g}")


@check(Scorer)
def elementwise_is_meant(subject: Subject) -> None:
    """A scorer with `elementwise = True` gives the same scores for parts of a flattened tensor as for all of it."""
    import torch

    if not subject.component.elementwise:
        raise Inapplicable("it does not set `elementwise = True`, as scores of single dimensions can")
    views = subject.pico.views(subject.component.needs)
    for name in subject.pico.pair.scope:
        t = views[name]
        if not bool(subject.component.eligible(t).any()):
            continue
        whole = subject.component.score(t).flatten()
        for part in (slice(0, 1), slice(1, 7), slice(7, None)):
            base, suspect = t.base.flatten()[part], t.suspect.flatten()[part]
            statistics = {key: values.flatten()[part] for key, values in t.statistics.items()}
            alone = subject.component.score(tensors.TensorView(name, base, suspect, t.seed, statistics, t.quantile))
            here = f"dimensions {part.start} to {part.stop or len(whole)} of {name}"
            same = alone.shape == base.shape and torch.allclose(alone, whole[part], rtol=1e-5, atol=0)
            expect(same, f"expected the same scores for {here} alone as within the whole tensor")
