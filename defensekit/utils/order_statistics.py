"""Exact order statistics of more numbers than fit in memory."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from defensekit.utils.parallel import concurrently, sum_of

if TYPE_CHECKING:
    from torch import Tensor


# A callable that yields float32 values in parts, each with a mask of those that count (bool; None for all). It can be
# called several times.
Source = Callable[[], "Iterable[tuple[Tensor, Tensor | None]]"]

BINS = 1 << 16
# Values kept at a time, at most: 256 MiB.
KEPT = 1 << 26


@dataclass(frozen=True)
class Kth:
    """The k-th largest of many values.

    Attributes:
        value: the k-th largest value; infinity where k is 0.
        ties: how many of the values equal to it belong to the k largest.
        equal: how many values of each source equal it; None where this was not counted.
    """

    value: float
    ties: int
    equal: list[int] | None = None


def kth_largest(
    sources: Sequence[Source], wanted: Callable[[int], int], threads: int = 1, sample: "Tensor | None" = None
) -> Kth:
    """The k-th largest of float32 values, exactly, without holding all of them in memory.

    With a sample, two bounds are estimated between which the value most likely lies; one pass counts the values above
    and keeps those between. Without a sample, or if the bounds were wrong, a radix select takes two passes: the first
    counts the upper 16 bits of each value, the second the lower 16 bits of those that share the upper ones. Counts are
    integers, so the result is the same for any sample and any number of threads.

    Args:
        sources: each yields its values again for each pass; NaN and infinity are not counted.
        wanted: gives k for the number of values; 0 for none of them.
        threads: how many sources are read at a time.
        sample: a sample of the values, drawn independently of them; all values have to be finite then.

    Returns:
        The value and its ties.

    Raises:
        ValueError: k is not between 0 and the number of values.
    """
    kth = None if sample is None or not len(sample) else _between(sources, wanted, threads, sample)
    return _radix(sources, wanted, threads) if kth is None else kth


def _between(sources: Sequence[Source], wanted: Callable[[int], int], threads: int, sample: "Tensor") -> Kth | None:
    """By the values between two bounds from a sample, about a share 5 / sqrt(size of the sample) of all values.

    None where the k-th largest is not between them, or where there are too many to keep.
    """
    import numpy as np
    import torch

    size, many = len(sample), 1 << 20
    share = wanted(many * size) / (many * size)
    slack = 5 * math.sqrt(size * share * (1 - share)) + 1

    def at(rank: float, beyond: float) -> float:
        """The sample's value at a rank, counted from the largest."""
        return float(sample.kthvalue(size - int(rank)).values) if 0 <= rank < size else beyond

    high, low = at(share * size - slack, math.inf), at(share * size + slack, -math.inf)
    budget = KEPT

    def count(source: Source) -> "tuple[np.ndarray[Any, Any], Tensor]":
        nonlocal budget
        # One buffer: many small arrays, each at the end of a freed part, would keep the memory of every part.
        tally, kept = np.zeros(5, dtype=np.int64), bytearray()
        for part, counted in source():
            # numpy compares these several times faster than torch.
            values = part.flatten().numpy()
            above, between = values > high, values >= low
            total = values.size
            if counted is not None:
                mask = counted.flatten().numpy()
                above &= mask
                between &= mask
                total = int(np.count_nonzero(mask))
            between ^= above
            few = values[between]
            at_high, at_low = few == high, few == low
            inside = few[~(at_high | at_low)]
            tally += [total, np.count_nonzero(above), np.count_nonzero(at_high), np.count_nonzero(at_low), inside.size]
            if budget > 0:  # approximate, as threads share it; whether all were kept is checked below
                budget -= inside.size
                kept += inside.tobytes()
        return tally, torch.from_numpy(np.frombuffer(kept, dtype=np.float32))

    counts, kept = zip(*concurrently(count, sources, threads), strict=True)
    total, above, at_high, at_low, inside = np.sum(counts, axis=0).tolist()
    left = _wanted(wanted, total) - above
    if left + above == 0:
        return Kth(math.inf, 0)
    if left <= 0 or sum(map(len, kept)) < inside:
        return None
    if left <= at_high:
        return Kth(high, left, [int(tally[2]) for tally in counts])
    left -= at_high
    if high == low:
        return None
    between = torch.cat(kept)
    if left <= len(between):
        value = float(between.kthvalue(len(between) + 1 - left).values)
        return Kth(value, left - int((between > value).sum()), [int((part == value).sum()) for part in kept])
    left -= len(between)
    return Kth(low, left, [int(tally[3]) for tally in counts]) if left <= at_low else None


def _radix(sources: Sequence[Source], wanted: Callable[[int], int], threads: int) -> Kth:
    """By a radix select, in two passes."""
    import torch

    def upper(source: Source) -> "Tensor":
        counts = torch.zeros(2 * BINS, dtype=torch.long)  # the second half for masked values
        for values, counted in source():
            bits = (_bits(values) >> 16).bitwise_and_(0xFFFF)
            if counted is not None:
                bits |= (~counted.flatten()).int() << 16
            counts += torch.bincount(bits, minlength=2 * BINS)
        return counts[:BINS]

    # In the order of their values: negative ones, whose bits run backwards, then positive ones.
    counts = upper_in_order(sum_of(upper, sources, threads))
    count = _wanted(wanted, int(counts.sum()))
    if count == 0:
        return Kth(math.inf, 0)
    bin_number, count = _largest(counts, count)
    prefix = bin_number - 0x8000 if bin_number >= 0x8000 else ~bin_number  # the upper 16 bits as a signed number

    def lower(source: Source) -> "Tensor":
        counts = torch.zeros(BINS, dtype=torch.long)
        for values, counted in source():
            bits = _bits(values)
            selected = bits >> 16 == prefix
            if counted is not None:
                selected &= counted.flatten()
            counts += torch.bincount(bits[selected].bitwise_and_(0xFFFF), minlength=BINS)
        return counts

    counts = sum_of(lower, sources, threads)
    bin_number, ties = _largest(counts.flip(0) if prefix < 0 else counts, count)
    bits = prefix << 16 | (0xFFFF - bin_number if prefix < 0 else bin_number)
    return Kth(float(torch.tensor([bits], dtype=torch.int32).view(torch.float32)), ties)


def _wanted(wanted: Callable[[int], int], total: int) -> int:
    count = wanted(total)
    if not 0 <= count <= total:
        raise ValueError(f"k is {count}, expected 0 to {total}")
    return count


def cutoff(tensors: "Callable[[], Iterable[Tensor]]", count: int) -> tuple[float, int]:
    """The ``count``-th largest value of float32 tensors, exactly and without concatenating them; see `kth_largest`.

    Args:
        tensors: yields the tensors, of any shapes; called once for each of two passes.
        count: the rank, from 0 to the number of finite values.

    Returns:
        The value, and how many of the values equal to it belong to the ``count`` largest; (infinity, 0) for 0.

    Raises:
        ValueError: ``count`` is out of range.

    >>> import torch
    >>> cutoff(lambda: [torch.tensor([3.0, 1.0]), torch.tensor([3.0, 2.0])], 1)
    (3.0, 1)
    """
    kth = kth_largest([lambda: ((values, None) for values in tensors())], lambda _: count)
    return kth.value, kth.ties


def _bits(values: "Tensor") -> "Tensor":
    """The bits as int32; those of -0.0 are 0.0's."""
    import torch

    return (values.flatten() + 0.0).view(torch.int32)


def upper_in_order(counts: "Tensor") -> "Tensor":
    """Counts by upper bits, reordered by value; those of NaN and infinity are set to 0."""
    import torch

    half = len(counts) // 2
    positive, negative = counts[:half].clone(), counts[half:].clone()
    positive[-half // 256 :] = negative[-half // 256 :] = 0  # the largest of 256 exponents
    return torch.cat([negative.flip(0), positive])


def _largest(histogram: "Tensor", wanted: int) -> tuple[int, int]:
    """The bin that holds the ``wanted``-th largest value, and that value's rank within the bin."""
    import torch

    from_top = histogram.flip(0).cumsum(0)
    bin_number = int(torch.searchsorted(from_top, wanted))
    above = int(from_top[bin_number - 1]) if bin_number else 0
    return len(histogram) - 1 - bin_number, wanted - above
