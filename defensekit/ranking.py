"""Exact order statistics of more numbers than memory holds: a radix select over the bits of float32."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")
Made = TypeVar("Made")

BINS = 1 << 16


def kth_largest(
    sources: "Sequence[Callable[[], Iterable[Tensor]]]", wanted: Callable[[int], int], threads: int = 1
) -> tuple[float, int]:
    """The k-th largest of float32 tensors, exactly, without ever holding them together.

    Two passes over them: the first counts the upper 16 bits of each value, the second the lower 16 of those that share
    the upper ones. Counts are whole numbers, so the answer is the same for any number of threads.

    Args:
        sources: each gives its tensors anew for each pass; NaN and infinity count as no values.
        wanted: says k for the number of values there are: 0 for none of them.
        threads: how many sources are read at a time.

    Returns:
        The value, and how many of those equal to it belong to the k largest; (infinity, 0) where k is 0.

    Raises:
        ValueError: k is not between 0 and the number of values.
    """
    import torch

    def upper(source: "Callable[[], Iterable[Tensor]]") -> "Tensor":
        counts = torch.zeros(BINS, dtype=torch.long)
        for bits in map(_bits, source()):
            counts += torch.bincount((bits >> 16).bitwise_and_(0xFFFF), minlength=BINS)
        return counts

    # In the order of their values: negative ones, whose bits run backwards, then positive ones.
    counts = upper_in_order(sum_of(upper, sources, threads))
    total = int(counts.sum())
    count = wanted(total)
    if not 0 <= count <= total:
        raise ValueError(f"k is {count}, expected 0 to {total}")
    if count == 0:
        return float("inf"), 0
    place, count = _largest(counts, count)
    prefix = place - 0x8000 if place >= 0x8000 else ~place  # the upper 16 bits as a signed number

    def lower(source: "Callable[[], Iterable[Tensor]]") -> "Tensor":
        counts = torch.zeros(BINS, dtype=torch.long)
        for bits in map(_bits, source()):
            counts += torch.bincount(bits[bits >> 16 == prefix].bitwise_and_(0xFFFF), minlength=BINS)
        return counts

    counts = sum_of(lower, sources, threads)
    place, ties = _largest(counts.flip(0) if prefix < 0 else counts, count)
    bits = prefix << 16 | (0xFFFF - place if prefix < 0 else place)
    return float(torch.tensor([bits], dtype=torch.int32).view(torch.float32)), ties


def cutoff(tensors: "Callable[[], Iterable[Tensor]]", count: int) -> tuple[float, int]:
    """The ``count``-th largest value of float32 tensors that are given anew for each pass; see `kth_largest`.

    >>> import torch
    >>> cutoff(lambda: [torch.tensor([3.0, 1.0]), torch.tensor([3.0, 2.0])], 1)
    (3.0, 1)
    """
    return kth_largest([tensors], lambda _: count)


def _bits(values: "Tensor") -> "Tensor":
    """The bits as int32; those of -0.0 are 0.0's."""
    import torch

    return (values.flatten() + 0.0).view(torch.int32)


def upper_in_order(counts: "Tensor") -> "Tensor":
    """Counts by as many upper bits as they have room for, in the order of the values; NaN and infinity are left out."""
    import torch

    half = len(counts) // 2
    positive, negative = counts[:half].clone(), counts[half:].clone()
    positive[-half // 256 :] = negative[-half // 256 :] = 0  # the largest of 256 exponents
    return torch.cat([negative.flip(0), positive])


def _largest(histogram: "Tensor", wanted: int) -> tuple[int, int]:
    """The bin that holds the ``wanted``-th largest, and its place within the bin."""
    import torch

    from_top = histogram.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, wanted))
    above = int(from_top[place - 1]) if place else 0
    return len(histogram) - 1 - place, wanted - above


def sum_of(function: "Callable[[Item], Tensor]", items: Sequence[Item], threads: int) -> "Tensor":
    """The sum of a function of every item."""
    found = concurrently(function, items, threads)
    total = next(found)
    for more in found:
        total += more
    return total


def concurrently(function: Callable[[Item], Made], items: Sequence[Item], threads: int) -> Iterator[Made]:
    """A function of every item, in order; ``threads`` at a time, each of which computes on its own.

    Tensors that fit a processor's cache gain nothing from being shared among threads.
    """
    import torch

    if threads == 1 or len(items) == 1:
        yield from map(function, items)
        return
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        ahead = deque[Future[Made]]()  # a few, so that finished ones don't pile up behind a slow one
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) == 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(own)  # a thread's own number is also what threads to come begin with
