"""The kernel for GPUs, in Triton: product, square and sum of every sample, whose product is never in memory; optional.

Each program has a tile of the result, and goes through samples and tokens in their order: nothing is added by chance of
scheduling, so that the same call gives the same bits. It takes 2 N T A B floating-point operations, as the plain path
does, and in place of its N A B floats for the products writes N numbers a tile.
"""

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

TILE, STEP = 64, 32  # rows and columns of a tile of the result, tokens at a time


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(
    left: Any,
    right: Any,
    used: Any,
    sums: Any,
    partial: Any,
    samples: Any,
    tokens: Any,
    a_size: Any,
    b_size: Any,
    tile: tl.constexpr,
    step: tl.constexpr,
) -> None:
    """One tile of the sums, and the sum of each sample's squared product within it."""
    a = tl.program_id(0) * tile + tl.arange(0, tile)
    b = tl.program_id(1) * tile + tl.arange(0, tile)
    number = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tiles = tl.num_programs(0) * tl.num_programs(1)
    total = tl.zeros((tile, tile), tl.float32)
    for n in range(samples):
        product = tl.zeros((tile, tile), tl.float32)
        for start in range(0, tokens, step):
            t = start + tl.arange(0, step)
            row = (n * tokens + t).to(tl.int64)
            kept = (t < tokens) & (tl.load(used + row, mask=t < tokens, other=0) != 0)
            x = tl.load(
                left + row[None, :] * a_size + a[:, None], mask=kept[None, :] & (a < a_size)[:, None], other=0.0
            )
            y = tl.load(
                right + row[:, None] * b_size + b[None, :], mask=kept[:, None] & (b < b_size)[None, :], other=0.0
            )
            product = tl.dot(x, y, product, input_precision="ieee")
        square = product * product
        total += square
        tl.store(partial + n * tiles + number, tl.sum(square))
    place = sums + a[:, None].to(tl.int64) * b_size + b[None, :]
    inside = (a < a_size)[:, None] & (b < b_size)[None, :]
    tl.store(place, tl.load(place, mask=inside, other=0.0) + total, mask=inside)


def squared_products(left: "Tensor", right: "Tensor", used: "Tensor", sums: "Tensor", norms: "Tensor") -> None:
    """Add every sample's squared product over its used rows; see `products.add_squared_products`.

    Shapes (samples, tokens, A), (samples, tokens, B), (samples, tokens), (A, B), (samples,); all contiguous, values in
    float32.
    """
    samples, tokens, a_size = left.shape
    grid = triton.cdiv(a_size, TILE), triton.cdiv(right.shape[2], TILE)
    partial = left.new_empty(samples, grid[0] * grid[1])
    _kernel[grid](left, right, used, sums, partial, samples, tokens, a_size, right.shape[2], tile=TILE, step=STEP)
    norms += partial.double().sum(1)
