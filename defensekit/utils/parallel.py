"""Work on many tensors at a time, each thread computing on its own."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


Item = TypeVar("Item")


Result = TypeVar("Result")


def sum_of(function: "Callable[[Item], Tensor]", items: Sequence[Item], threads: int) -> "Tensor":
    """The sum of a function of every item."""
    results = concurrently(function, items, threads)
    total = next(results)
    for result in results:
        total += result
    return total


def concurrently(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """A function of every item, in order; ``threads`` at a time, each of which computes on its own.

    Tensors that fit a processor's cache gain nothing from being shared among threads.
    """
    import torch

    # Until a larger piece was freed once (of 32 MiB at most), glibc hands what is freed back to the system, which
    # zeroes it anew for the next part: up to a quarter of the time of all.
    torch.UntypedStorage(31 << 20)  # type: ignore[no-untyped-call]
    if threads == 1 or len(items) == 1:
        yield from map(function, items)
        return
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        ahead = deque[Future[Result]]()  # a few, so that finished ones don't pile up behind a slow one
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) == 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(own)  # a thread's own number is also what threads to come begin with
