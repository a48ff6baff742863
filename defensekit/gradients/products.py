"""Sums of squared per-sample products, the inner loop of squared gradients."""

import logging
import os
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from defensekit.gradients import kernel
from defensekit.utils.errors import one_line

if TYPE_CHECKING:
    import ctypes
    from types import ModuleType

    from torch import Tensor

# Elements of a sample's product at a time on a processor (4 MiB: smaller ones would stay in a nearer cache, but calling
# torch more often costs more than that saves), and of a whole batch's products on a GPU.
CPU_TILE = 1 << 20
GPU_TILE = 1 << 24

log = logging.getLogger("defensekit")


def add_squared_products(left: "Tensor", right: "Tensor", used: "Tensor", sums: "Tensor", norms: "Tensor") -> None:
    """Add every sample's squared product to ``sums`` and the sum of its entries to ``norms``.

        P_n = sum_t left[n, t]^T right[n, t],   sums += sum_n P_n^2,   norms[n] += sum P_n^2

    This takes 2 N T A B floating-point operations, as many as the ordinary weight gradient. Rows that are not ``used``
    (padding, and all but the pooled token in the last layer) are skipped. Without the kernel, samples with one used row
    are done by a single matrix product over samples, (left^2)^T right^2.

    Args:
        left: (samples, tokens, A), contiguous or not.
        right: (samples, tokens, B), of the same dtype.
        used: (samples, tokens), bool; where it is False, one of both rows is exactly 0.
        sums: (A, B), contiguous, of the same dtype.
        norms: (samples,), float64.

    Raises:
        ValueError: the shapes or types don't fit each other; nothing was added.
    """
    import torch

    expected = (left.shape[2], right.shape[2]), left.shape[:2], left.shape[:2], left.dtype, left.dtype
    if expected != (sums.shape, right.shape[:2], used.shape, right.dtype, sums.dtype) or not sums.is_contiguous():
        shapes = [list(tensor.shape) for tensor in (left, right, used, sums)]
        raise ValueError(f"expected (N, T, A), (N, T, B), (N, T) and (A, B) of one dtype, got {shapes}")
    library = _kernel(left)
    if library is not None:
        kernel.squared_products(library, left.contiguous(), right.contiguous(), used.contiguous(), sums, norms)
        return
    single = used.sum(1) == 1
    if bool(single.any()):
        alone = used & single[:, None]
        left2, right2 = left[alone].square_(), right[alone].square_()
        sums.addmm_(left2.T, right2)
        norms[single] += (left2.double().sum(1)) * (right2.double().sum(1))
        used = used & ~single[:, None]
    if not bool(used.any()):
        return
    if left.device.type != "cpu":
        if left.dtype == torch.float32 and (fused := _fused()) is not None:
            fused.squared_products(left.contiguous(), right.contiguous(), used.contiguous(), sums, norms)
        else:
            _batched(left * used[..., None], right, sums, norms)
        return
    offsets = torch.nn.functional.pad(used.sum(1).cumsum(0), (1, 0))
    _one_by_one(left[used], right[used], offsets.tolist(), sums, norms)


def used_rows(g: "Tensor") -> "Tensor":
    """Which rows of (samples, tokens, features) are not exactly 0: (samples, tokens), bool."""
    library = _kernel(g)
    return g.any(-1) if library is None else kernel.used_rows(library, g.contiguous())


def add_squared_sums(g: "Tensor", f: "Tensor | None", sums: "Tensor", norms: "Tensor") -> None:
    """Add every sample's squared sum over tokens to ``sums`` and the sum of its entries to ``norms``.

        s_n = sum_t g[n, t] * f[n, t]  (without f: sum_t g[n, t]),   sums += sum_n s_n^2,   norms[n] += sum s_n^2

    Args:
        g: (samples, tokens, features).
        f: the same, or None.
        sums: (features,), contiguous, of the same dtype.
        norms: (samples,), float64.
    """
    library = _kernel(g)
    if library is not None:
        kernel.squared_sums(library, g.contiguous(), None if f is None else f.contiguous(), sums, norms)
        return
    squared = (g if f is None else g * f).sum(1).square_()
    sums += squared.sum(0)
    norms += squared.double().sum(1)


def _kernel(values: "Tensor") -> "ctypes.CDLL | None":
    import torch

    return kernel.load() if values.device.type == "cpu" and values.dtype == torch.float32 else None


@cache
def _fused() -> "ModuleType | None":
    """The kernel for GPUs; None where Triton is missing or can't compile it, which is logged, or it is turned off."""
    import torch

    if os.environ.get("DEFENSEKIT_KERNEL") == "off":
        return None
    try:
        from defensekit.gradients import fused

        one = torch.ones(1, 1, 1, device="cuda")
        fused.squared_products(one, one, one[0] > 0, one[0].clone(), one[0, 0].double())
    except Exception as error:  # of a compiler, of a driver: of many kinds
        log.info("squared gradients are computed without the fused kernel: %s", one_line(error))
        return None
    return fused


def _one_by_one(left: "Tensor", right: "Tensor", offsets: list[int], sums: "Tensor", norms: "Tensor") -> None:
    """One matrix product per sample and block of rows; sample n has the rows offsets[n] to offsets[n + 1]."""
    import torch

    high = min(left.shape[1], max(1, CPU_TILE // right.shape[1]))
    products = right.new_empty(high, right.shape[1])
    squares = right.new_empty(len(norms))
    for top in range(0, left.shape[1], high):
        block = sums[top : top + high]
        product = products[: len(block)]
        flat = product.view(-1)
        for n, (first, last) in enumerate(pairwise(offsets)):
            torch.mm(left[first:last, top : top + high].T, right[first:last], out=product)
            block.addcmul_(product, product)
            torch.dot(flat, flat, out=squares[n])
        norms += squares


def _batched(left: "Tensor", right: "Tensor", sums: "Tensor", norms: "Tensor") -> None:
    """One product for all samples and a block of rows."""
    import torch

    high = max(1, GPU_TILE // (len(left) * right.shape[2]))
    for top in range(0, left.shape[2], high):
        squared = torch.bmm(left[..., top : top + high].transpose(1, 2), right).square_()
        sums[top : top + high] += squared.sum(0)
        norms += squared.flatten(1).sum(1)
