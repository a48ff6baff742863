"""One stage in a worker of any executor: its environment, and its outcome as plain data."""

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
    """Environment variables for a process that computes with that many threads."""
    number = str(threads)
    return {"OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number, "TOKENIZERS_PARALLELISM": "false"}


def bound(gib: float) -> None:
    """Limit the memory of this process, so that it fails instead of the whole machine."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30), most))


def answer(title: str, call: Callable[[Report], None], say: Report) -> tuple[str, ...]:
    """Do a stage's work; returns ("done",), or the kind of an error ("usage" or "error") and its text.

    ``call`` gets the function to report its progress to; ``say`` gets it a few times a second.
    """
    last_report = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last_report
        if (now := time.monotonic()) - last_report > EVERY:
            last_report = now
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
    """Raise the error of an outcome, if it is one.

    Raises:
        DefenseKitError: as it was raised in the worker.
    """
    if what != "done":
        raise (UsageError if what == "usage" else DefenseKitError)(*text)
