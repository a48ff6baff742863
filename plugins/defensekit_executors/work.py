"""One stage in a worker, whoever started it: what it runs under, and what came of it in plain words."""

import os
import time
from collections.abc import Callable

from defensekit.api import DefenseKitError, UsageError

Report = Callable[[int, int], None]

EVERY = 0.2  # seconds between two reports of progress


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def variables(threads: int) -> dict[str, str]:
    """What a process that computes with so many threads has in its environment from its start."""
    number = str(threads)
    return {"OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number, "TOKENIZERS_PARALLELISM": "false"}


def bound(gib: float) -> None:
    """Bound the memory this process may take; what is beyond is an error instead of the whole machine's trouble."""
    try:
        import resource
    except ImportError:  # a system without it
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30), most))


def answer(title: str, call: Callable[[Report], None], say: Report) -> tuple[str, ...]:
    """Do a stage's work; returns ("done",), or the kind of an error ("usage" or "error") and its text.

    ``call`` takes what it reports its progress to; ``say`` hears of it a few times a second.
    """
    said = 0.0

    def report(done: int, total: int) -> None:
        nonlocal said
        if (now := time.monotonic()) - said > EVERY:
            said = now
            say(done, total)

    try:
        call(report)
    except UsageError as error:
        return "usage", str(error)
    except DefenseKitError as error:
        return "error", str(error)
    except Exception as error:
        return "error", f"{title}: {type(error).__name__}: {error}"
    return ("done",)


def check(what: str, *text: str) -> None:
    """Raise what an answer tells of.

    Raises:
        DefenseKitError: as it was raised in the worker.
    """
    if what != "done":
        raise (UsageError if what == "usage" else DefenseKitError)(*text)
