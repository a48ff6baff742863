"""r = delta^2 / H compared with the law that it follows in theory."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from defensekit.defense import gamma_mixture
from defensekit.gradients import mean_squared_gradients, tokens_within
from defensekit.models.aligned import in_rows
from defensekit.models.names import align
from defensekit.models.padding import settle_gradients
from defensekit.scanner.result import AbnormalTensor, Law, TensorDrift
from defensekit.text import Row, batches, encode

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Bytes that a batch of per-sample gradients may take, and bytes of curvature that may stay in memory.
_BATCH, _HELD = 512 * 2**20, 4096 * 2**20


def curvature(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    max_length: int,
    report: Callable[[int, int], None],
) -> "dict[str, Tensor]":
    """H by the model's parameter names: the mean over rows of squared per-sample gradients.

    They are taken at the suspect's weights with the labels as given: the empirical Fisher (Martens 2020, section 11,
    describes its limits).
    """
    encoded, tokens = encode(tokenizer, rows, max_length, model), tokens_within(model, _BATCH)
    settle_gradients(model, tokenizer, encoded)

    def on_device() -> "Iterator[dict[str, Tensor]]":
        for _, batch in batches(encoded, tokenizer, len(encoded), tokens):
            yield {name: values.to(model.device) for name, values in batch.items()}

    means, _ = mean_squared_gradients(model, on_device, len(rows), held=_HELD, report=report)
    return {name: mean.cpu() for name, mean in means.items()}


@dataclass
class Ratios:
    """Collects, block by block, the histogram of log r of every tensor, and what the slope needs."""

    curvature: "dict[str, Tensor]"
    counts: dict[str, Any] = field(default_factory=dict)
    _moments: list[float] = field(default_factory=lambda: [0.0] * 5)

    def look(self, name: str, start: int, base: "Tensor", suspect: "Tensor") -> None:
        """Take a block of a tensor; tensors without curvature are skipped."""
        import torch

        if name not in self.curvature:
            return
        curved = in_rows(self.curvature[name])[start : start + len(base)].double()
        delta = (suspect - base).double()
        usable = (delta != 0) & (curved > 0)
        drifts, curves = 2 * delta[usable].abs().log2(), curved[usable].log2()
        counts = gamma_mixture.count_bins(drifts - curves)
        self.counts[name] = self.counts[name] + counts if name in self.counts else counts
        sums = (torch.ones_like(curves), curves, drifts, curves.square(), curves * drifts)
        self._moments = [old + float(new.sum()) for old, new in zip(self._moments, sums, strict=True)]

    @property
    def slope(self) -> float:
        """The least-squares slope of log delta^2 over log H; 0 where H does not vary."""
        n, x, y, xx, xy = self._moments
        spread = n * xx - x * x
        return (n * xy - x * y) / spread if spread > 0 else 0.0


def by_tensor_name(measured: "dict[str, Tensor]", own_names: dict[str, str]) -> "dict[str, Tensor]":
    """Values by a loaded model's parameter names, renamed to the names of aligned tensors.

    ``own_names`` maps those to the names in the suspect's file.
    """
    loaded, in_file = align(measured, own_names.values())
    common = {own: name for name, own in in_file.items()}
    return {name: measured[loaded[common[own]]] for name, own in own_names.items() if common.get(own) in loaded}


def judge(ratios: Ratios, tensors: Sequence[TensorDrift], rows: int, seed: int) -> Law | None:
    """Fit the mixture; None where no dimension has both a drift and a curvature."""
    import numpy as np

    names = [name for name, counts in ratios.counts.items() if counts.any()]
    if not names:
        return None
    histograms = np.stack([ratios.counts[name] for name in names])
    total = histograms.sum(axis=0)
    fitted = gamma_mixture.fit_mixture(total)
    low, high = gamma_mixture.interval(histograms, fitted, np.random.default_rng(seed))
    kinds = {tensor.name: tensor for tensor in tensors}
    belongs = gamma_mixture.posterior_by_bin(fitted)
    abnormal_tensors = [
        AbnormalTensor(
            name=name,
            kind=kinds[name].kind,
            layer=kinds[name].layer,
            dimensions=int(counts.sum()),
            share=float(counts @ belongs / counts.sum()),
        )
        for name, counts in zip(names, histograms, strict=True)
    ]
    octaves = total.reshape(-1, gamma_mixture.PER_OCTAVE).sum(axis=1)
    seen = np.flatnonzero(octaves)
    return Law(
        rows=rows,
        dimensions=int(total.sum()),
        normal=fitted.normal,
        abnormal=fitted.abnormal,
        share=fitted.share,
        low=low,
        high=high,
        apart=fitted.apart,
        distance=fitted.distance,
        single_distance=fitted.single_distance,
        slope=ratios.slope if math.isfinite(ratios.slope) else 0.0,
        first=int(seen[0]) - gamma_mixture.OCTAVES,
        counts=octaves[seen[0] : seen[-1] + 1].tolist(),
        tensors=sorted(abnormal_tensors, key=lambda tensor: (-tensor.share, tensor.name)),
    )
