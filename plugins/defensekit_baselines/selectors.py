"""Selectors of whole units, and of dimensions within rows."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from defensekit.api import DefenseKitError, Field, Scores, Selector

if TYPE_CHECKING:
    from torch import Tensor


class Units(Selector):
    """Whole units with the highest scores, counted exactly; a unit's score is the mean over its eligible dimensions.

    A row of a matrix is what makes one output, a column what reads one input, however the matrix is stored (GPT-2's are
    transposed); of an embedding table a row is a token. An entry of a vector is a row of its own; a vector has
    no columns. A head is as many neighbouring columns as the model's config says. Of a unit that is taken, every
    eligible dimension is selected. Equal scores are ordered by the tensor's name, then by the position in
    the tensor.
    """

    lower_does_more: ClassVar[frozenset[str]] = frozenset({"spare"})

    unit: Literal["row", "column", "head", "tensor"] = Field(description="what is selected as a whole")
    fraction: float | None = Field(
        None, ge=0, le=1, description="the share of the eligible units that is taken", examples=[0.5]
    )
    count: int | None = Field(None, ge=0, description="in place of fraction: how many units, or all where fewer are")
    scope: Literal["global", "layer", "tensor"] = Field(
        "global", description="whether units compete over the whole model, within a layer or within a tensor"
    )
    spare: int = Field(0, ge=0, description="units with the lowest scores that are never selected, in every layer")

    @model_validator(mode="after")
    def _one_of(self) -> "Units":
        if (self.fraction is None) == (self.count is None):
            raise ValueError("expected either fraction or count")
        return self

    def takes_nothing(self) -> bool:
        return not self.fraction and not self.count

    def select(self, scores: Scores) -> "dict[str, Tensor]":
        import torch

        unit_scores = {name: self._units(name, scores) for name in scores}
        free = self._free(scores, {name: units for name, (units, _) in unit_scores.items()})
        groups: dict[str, list[str]] = {}
        for name, scored in scores.items():
            groups.setdefault({"global": "", "layer": scored.layer, "tensor": name}[self.scope], []).append(name)
        taken: dict[str, Tensor] = {}
        for names in groups.values():
            units = torch.cat([unit_scores[name][0] for name in names])
            eligible = int((units > -torch.inf).sum())
            wanted = round(self.fraction * eligible) if self.fraction is not None else self.count or 0
            units[~torch.cat([free[name] for name in names])] = -torch.inf
            wanted = min(wanted, int((units > -torch.inf).sum()))
            chosen = torch.zeros_like(units, dtype=torch.bool)
            chosen[units.argsort(descending=True, stable=True)[:wanted]] = True
            sizes = [len(unit_scores[name][0]) for name in names]
            taken.update(zip(names, torch.split(chosen, sizes), strict=True))
        return {name: taken[name][unit_scores[name][1]] & scored.eligible for name, scored in scores.items()}

    def _units(self, name: str, scores: Scores) -> "tuple[Tensor, Tensor]":
        """The units' scores (-inf for a unit without eligible dimensions), and the unit of each dimension."""
        import torch

        scored = scores[name]
        stored = scored.score.shape
        turned = scores.output_axis(name) == 1
        shape = stored[::-1] if turned else stored
        if self.unit == "tensor" or not shape:
            numbers = torch.zeros(shape, dtype=torch.long)
        elif self.unit == "row":
            numbers = torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1)).expand(shape)
        elif len(shape) != 2:
            return torch.full((1,), -torch.inf, dtype=torch.float64), torch.zeros(shape, dtype=torch.long)
        else:
            size = 1 if self.unit == "column" else self._head_size(name, scores, shape[1])
            numbers = (torch.arange(shape[1]) // size).expand(shape)
        numbers = numbers.T if turned else numbers
        count = int(numbers.max()) + 1 if numbers.numel() else 1
        inside = numbers[scored.eligible]
        sums = torch.zeros(count, dtype=torch.float64).index_add_(0, inside, scored.score[scored.eligible].double())
        members = torch.bincount(inside, minlength=count)
        return torch.where(members > 0, sums / members.clamp(min=1), -torch.inf), numbers

    def _head_size(self, name: str, scores: Scores, columns: int) -> int:
        size = scores.head_size
        if not bool(scores[name].eligible.any()):
            return columns
        if size is None:
            raise DefenseKitError("the model's config does not say how large an attention head is")
        if columns % size:
            raise DefenseKitError(
                f"{name} has {columns} columns, no multiple of the head size {size}; score only tensors with heads"
            )
        return size

    def _free(self, scores: Scores, units: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """By tensor, the units that may be selected, without the spared ones."""
        import torch

        free = {name: values > -torch.inf for name, values in units.items()}
        if self.spare:
            layers: dict[str, list[str]] = {}
            for name, scored in scores.items():
                layers.setdefault(scored.layer, []).append(name)
            for names in layers.values():
                values = torch.cat([units[name] for name in names])
                may = torch.cat([free[name] for name in names])
                lowest = torch.where(may, values, torch.inf).argsort(stable=True)[: self.spare]
                may[lowest] = False
                free.update(zip(names, torch.split(may, [len(units[name]) for name in names]), strict=True))
        return free


class FractionPerRow(Selector):
    """The highest scores within every row: a share of the row's eligible dimensions, counted exactly.

    A row of a matrix is what makes one output, however it is stored, which is what Wanda compares within; a vector is
    one row.
    """

    fraction: float = Field(ge=0, le=1, description="the share of a row's eligible dimensions that is selected")

    def takes_nothing(self) -> bool:
        return self.fraction == 0

    def select(self, scores: Scores) -> "dict[str, Tensor]":
        import torch

        selection = {}
        for name, scored in scores.items():
            eligible, score = scored.eligible, scored.score
            if turned := scores.output_axis(name) == 1:
                eligible, score = eligible.T, score.T
            rows = eligible.reshape(-1, eligible.shape[-1]) if eligible.dim() else eligible[None]
            values = score.reshape(rows.shape).masked_fill(~rows, -torch.inf)
            count = (self.fraction * rows.sum(1, keepdim=True).double()).round()
            order = values.argsort(dim=1, descending=True, stable=True)
            rank = torch.empty_like(order).scatter_(1, order, torch.arange(rows.shape[1]).expand(rows.shape))
            taken = ((rank < count) & rows).view(eligible.shape)
            selection[name] = taken.T if turned else taken
        return selection
