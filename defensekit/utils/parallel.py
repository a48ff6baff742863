"""A function applied to many items by several threads, each computing on a single core."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

    from torch import Tensor


Item = TypeVar("Item")


Result = TypeVar("Result")


def sum_of(function: "Callable[[Item], Tensor]", items: Sequence[Item], threads: int) -> "Tensor":
    """The sum of a function's results over all items."""
    results = concurrently(function, items, threads)
    total = next(results)
    for result in results:
        total += result
    return total


def concurrently(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """Apply a function to every item by several threads and yield the results in order.

    Each thread computes on one core: tensors that fit a processor's cache gain nothing from torch's own threads.
    """
    from concurrent.futures import ThreadPoolExecutor

    import torch

    # Until a larger block was freed once (of 32 MiB at most), glibc returns freed memory to the system, which zeroes it
    # again for the next part: up to a quarter of the total time.
    torch.UntypedStorage(31 << 20)  # type: ignore[no-untyped-call]
    if threads == 1 or len(items) == 1:
        yield from map(function, items)
        return
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        ahead: deque[Future[Result]] = deque()  # bounded, so that results don't pile up behind a slow one
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) == 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(own)  # new threads start with this number too
