"""Defenses by model merging: kept drifts are scaled up, or models of one task are averaged."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from defensekit.api import (
    Field,
    ModelStep,
    ModelStepContext,
    TaskKind,
    TensorView,
    UsageError,
    WeightStep,
    cutoff,
    file_digest,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Rescale(WeightStep):
    """Divide the drifts that were not selected by their share of all drifts other than 0, tensor by tensor.

    DARE (Yu et al., ICML 2024) drops drifts at a rate p and divides the rest by 1 - p, so that their sum stays the same
    on average: w = base + (w - base) / (1 - p). Here 1 - p is the share that was kept of the tensor, which the
    selector `fraction` with ``scope: tensor`` makes the same everywhere.
    """

    acts_on: ClassVar[Literal["selected", "kept"]] = "kept"

    def apply(self, t: TensorView, weight: "Tensor", selection: "Tensor") -> "Tensor":
        import torch

        share = float((selection != 0).sum()) / max(int((t.drift != 0).sum()), 1)
        if share == 0:
            return weight
        return torch.where(selection != 0, (t.base + (weight.float() - t.base) / share).to(weight.dtype), weight)


class Merge(ModelStep):
    """Average the model with others of the same task, the head included.

    ``mean`` is WAG (Arora et al., "Here's a free lunch", Findings of ACL 2024; in ansharora7/model-merge-backdoor,
    wag.py): the uniform mean of all weights. Backdoors that differ dilute each other, the task does not.

    ``ties`` is TIES-Merging (Yadav et al., NeurIPS 2023): of each model's drift from the base the ``keep`` largest
    stay, the sign with more weight behind it is elected for every dimension, and the mean is over those that have it.
    The head, which has no base, is averaged.
    """

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification", "multi-label", "generation"})
    location: ClassVar[frozenset[str]] = frozenset({"models"})

    models: tuple[Path, ...] = Field(
        min_length=1, description="folders of other models of the task: of classifiers, with the same labels"
    )
    how: Literal["mean", "ties"] = Field("mean", description="the plain mean, or trim, elect sign and disjoint mean")
    keep: float = Field(0.7, gt=0, le=1, description="of ties: the share of each model's drifts that is not trimmed")

    def contents(self) -> str | None:
        digest = hashlib.sha256()
        for folder in self.models:
            files = sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")])
            if len(files) < 2:
                raise UsageError(f"{folder} is not a model folder: expected config.json and safetensors")
            digest.update("".join(map(file_digest, files)).encode())
        return digest.hexdigest()

    def train(self, model: "PreTrainedModel", context: ModelStepContext) -> None:
        import torch

        parts = [dict(source.named_parameters()) for source in (model, *map(context.model, self.models))]
        with torch.no_grad():
            weights = {name: [part[name].detach().to(own.device) for part in parts] for name, own in parts[0].items()}
            merged = {name: torch.stack(several).mean(0) for name, several in weights.items()}
            if self.how == "ties":
                base = dict(context.model("base").named_parameters())
                scope = [name for name in weights if name not in context.head]
                drifts = {name: [w - base[name].to(w.device) for w in weights[name]] for name in scope}
                for name, drift in self.ties(drifts).items():
                    merged[name] = base[name].to(drift.device) + drift
            for name, own in parts[0].items():
                own.copy_(merged[name])

    def ties(self, drifts: "dict[str, list[Tensor]]") -> "dict[str, Tensor]":
        """One drift for several models': ``drifts[name]`` has a tensor for each model."""
        import torch

        bars = []
        for i in range(len(next(iter(drifts.values())))):
            sizes = [several[i].abs().float().cpu() for several in drifts.values()]
            count = max(round(self.keep * sum(size.numel() for size in sizes)), 1)
            bars.append(cutoff(lambda sizes=sizes: sizes, count)[0])  # type: ignore[misc]
        merged = {}
        for name, several in drifts.items():
            trimmed = torch.stack([d.where(d.abs() >= bar, 0.0) for d, bar in zip(several, bars, strict=True)])
            elected = trimmed.sum(0).sign()
            agree = (trimmed.sign() == elected) & (trimmed != 0)
            merged[name] = (trimmed * agree).sum(0) / agree.sum(0).clamp(min=1)
        return merged
