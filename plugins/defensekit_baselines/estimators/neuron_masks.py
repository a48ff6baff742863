"""Adversarial Neuron Pruning: which neurons hurt the model when all of them are perturbed."""

from typing import TYPE_CHECKING, Any, ClassVar

from defensekit.api import DefenseKitError, Estimate, Estimator, EstimatorContext, Field
from defensekit_baselines.estimators.layers import inputs_of, linear_layers, per_input
from defensekit_baselines.layout import NEURONS_OUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class AdversarialNeuronPruning(Estimator):
    """A mask m in [0, 1] for every neuron of a feed-forward layer (ANP, Wu and Wang, NeurIPS 2021).

    All entries of the neuron's column of the second matrix have the neuron's mask.

        min over m of alpha * L(m) + (1 - alpha) * max over |n| <= eps of L(m + n),  L the clean rows' cross-entropy

    where a neuron's output is multiplied by its mask. The inner maximum is one step of the gradient's sign from a
    random start, which may exceed eps. Settings and steps are those of the authors' code
    (csdongxian/ANP_backdoor, optimize_mask_cifar.py), where a neuron is a channel before batch norm, its bias is
    perturbed by separate noise, and the network is in training mode.

        estimator: {name: anp, iterations: 500}
    """

    provides: ClassVar[frozenset[str]] = frozenset({"neuron-mask"})

    iterations: int = Field(2000, ge=1, description="steps, of three forward and two backward passes each")
    learning_rate: float = Field(0.2, gt=0, description="of the masks; SGD with a momentum of 0.9")
    eps: float = Field(0.4, ge=0, description="how far a mask is perturbed")
    alpha: float = Field(0.2, ge=0, le=1, description="the weight of the loss without a perturbation")
    batch_size: int = Field(128, ge=1, description="rows per step")

    def estimate(self, context: EstimatorContext) -> Estimate:
        import torch

        from defensekit.gradients import cross_entropy

        model = context.model("suspect").eval()
        layers = {name: layer for name, layer in linear_layers(model) if NEURONS_OUT.search(f"{name}.weight")}
        if not layers:
            raise DefenseKitError("no feed-forward layer is known by its name in this model")
        generator = torch.Generator().manual_seed(context.seed)
        masks = [
            torch.ones(inputs_of(layer), device=next(layer.parameters()).device, requires_grad=True)
            for layer in layers.values()
        ]
        optimizer = torch.optim.SGD(masks, lr=self.learning_rate, momentum=0.9)
        factors: list[Tensor] = masks

        def hook(index: int) -> "Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]":
            return lambda layer, inputs: (inputs[0] * factors[index], *inputs[1:])

        def loss(batch: "dict[str, Tensor]", with_factors: "list[Tensor]") -> "Tensor":
            nonlocal factors
            factors = with_factors
            return cross_entropy(model, batch).mean()

        handles = [layer.register_forward_pre_hook(hook(i)) for i, layer in enumerate(layers.values())]
        try:
            batches = [batch for _, batch in context.batches(model, size=self.batch_size)]
            for done in range(self.iterations):
                batch = batches[int(torch.randint(len(batches), (), generator=generator))]
                drawn = [2 * torch.rand(len(m), generator=generator).to(m.device) - 1 for m in masks]
                noise = [(self.eps * signs).requires_grad_(True) for signs in drawn]
                worse = loss(batch, [m.detach() + n for m, n in zip(masks, noise, strict=True)])
                slopes = torch.autograd.grad(worse, noise)
                noise = [(n + self.eps * s.sign()).detach() for n, s in zip(noise, slopes, strict=True)]
                optimizer.zero_grad()
                robust = loss(batch, [m + n for m, n in zip(masks, noise, strict=True)])
                total = self.alpha * loss(batch, masks) + (1 - self.alpha) * robust
                torch.autograd.backward(total, inputs=masks)
                optimizer.step()
                with torch.no_grad():
                    for mask in masks:
                        mask.clamp_(0, 1)
                context.report(done + 1, self.iterations)
        finally:
            for handle in handles:
                handle.remove()
        pairs = zip(layers.items(), masks, strict=True)
        statistics = {f"{name}.weight": per_input(layer, mask.detach()) for (name, layer), mask in pairs}
        below = sum(int((mask < 0.2).sum()) for mask in masks) / sum(len(mask) for mask in masks)
        return Estimate({"neuron-mask": statistics}, {"neurons_below_0.2": below})
