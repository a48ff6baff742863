"""Models made of whatever a stranger may have put into one."""

from collections.abc import Callable

import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint


class Output:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


class Small(nn.Module):
    """Tokens, a layer of the test's own, the mean over tokens, a head."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.embed, self.middle, self.head = nn.Embedding(20, 6, padding_idx=0), middle, nn.Linear(6, 3)

    def forward(self, input_ids: torch.Tensor) -> Output:
        return Output(self.head(torch.tanh(self.middle(self.embed(input_ids))).mean(1)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(torch.tanh(self.inner(x)))


class UsedElsewhere(nn.Module):
    """A layer that is called once, and whose weight is used again without it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner(x)) @ self.inner.weight


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(torch.relu(self.one(x)))


class Owner(nn.Module):
    """Parameters of a module that nobody has heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.tensor = nn.Parameter(torch.randn(6, 2, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nti,iko->nto", x, self.tensor)


class Shifted(nn.Module):
    """Gemma's norm: the weight counts from 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class Expert(nn.Module):
    """A layer that only long samples reach."""

    def __init__(self) -> None:
        super().__init__()
        self.common, self.rare = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.common(x) + (self.rare(x) if x.shape[1] > 4 else 0)


class Flat(nn.Module):
    """A layer that is given tokens without samples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class ByKeyword(nn.Module):
    """A layer that is called without a positional argument."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(input=x)
        return y


class Scalar(nn.Module):
    """A temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class IgnoresBias(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight)


class Widened(nn.Linear):
    """More comes out than the weight has rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.linear(x, self.weight[:3], self.bias[:3])
        return torch.cat([y, -y], -1)


class Rectified(nn.Linear):
    """Autograd keeps what comes out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias).relu()


class RectifiedScale(nn.Module):
    """Linear in its vector only where it is positive, and its result is kept by autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).relu()


class Masked(nn.Embedding):
    """Looks up something else than it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 1)


class LooksUp(nn.Module):
    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.table(x.detach().argmax(-1))
        return x + found


class Shared(nn.Module):
    """Positions, looked up once for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table(torch.arange(x.shape[1])[None])


class SharedFlat(Shared):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table(torch.arange(x.shape[1]))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += 1
        y = self.inner(x)
        y += x
        return y.relu_()


class Hooked(nn.Module):
    """A layer to whose output a hook adds what another makes of the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inner, self.adapter = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.inner.register_forward_hook(self.added)

    def added(self, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = output + self.adapter(inputs[0])
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.inner(self.before(x))
        return made


class Replaced(Hooked):
    """The same, done by replacing the layer's forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.inner.forward = self.replaced  # type: ignore[method-assign]

    def replaced(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = nn.functional.linear(x, self.inner.weight, self.inner.bias) + self.adapter(x)
        return made


class Pooled(nn.Module):
    """Of the tokens only one is used."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.before, self.inner = layer(), layer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.inner(self.before(x).tanh())
        return made[:, :1]


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)), reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = checkpoint(self.inner, x, use_reentrant=self.reentrant)
        return made


# What a model may be made of, and the parameters of it that go the plain way.
MIDDLES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "conv1d": (lambda: transformers.pytorch_utils.Conv1D(6, 6), set()),
    "layer norm": (lambda: nn.LayerNorm(6), set()),
    "no bias": (lambda: nn.Linear(6, 6, bias=False), set()),
    "rms norm": (lambda: nn.RMSNorm(6), set()),
    "shifted norm": (Shifted, set()),
    "shared positions": (Shared, set()),
    "in place": (InPlace, set()),
    "hooked": (Hooked, set()),
    "replaced": (Replaced, set()),
    "pooled": (lambda: Pooled(lambda: nn.Linear(6, 6)), set()),
    "pooled conv1d": (lambda: Pooled(lambda: transformers.pytorch_utils.Conv1D(6, 6)), set()),
    "reentrant": (lambda: Checkpointed(True), set()),
    "not reentrant": (lambda: Checkpointed(False), set()),
    "positions without samples": (SharedFlat, {"table.weight"}),
    "twice": (Twice, {"inner.weight", "inner.bias"}),
    "used elsewhere": (UsedElsewhere, {"inner.weight", "inner.bias"}),
    "tied": (Tied, {"one.weight", "one.bias", "other.bias"}),
    "owner": (Owner, {"tensor"}),
    "scalar": (Scalar, {"scale"}),
    "expert": (Expert, {"rare.weight", "rare.bias"}),
    "flat": (Flat, {"inner.weight", "inner.bias"}),
    "by keyword": (ByKeyword, {"inner.weight", "inner.bias"}),
    "ignored bias": (lambda: IgnoresBias(6, 6), {"weight"}),
    "widened": (lambda: Widened(6, 6), {"weight", "bias"}),
    "rectified": (lambda: Rectified(6, 6), {"weight", "bias"}),
    "rectified scale": (RectifiedScale, {"weight"}),
    "prelu": (lambda: nn.PReLU(6), {"weight"}),
    "another look-up": (lambda: LooksUp(Masked(8, 6)), {"table.weight"}),
    "sparse": (lambda: LooksUp(nn.Embedding(8, 6, sparse=True)), {"table.weight"}),
}
