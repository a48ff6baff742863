"""Telling observers of work that is no stage of a run."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from defensekit.components.runtime import Observer


@contextmanager
def part(observers: Sequence[Observer], title: str) -> Iterator[Callable[[int, int], None]]:
    """A part of some work, for whoever watches; gives what is to be told of its progress."""
    began = time.perf_counter()

    def report(done: int, total: int) -> None:
        for observer in observers:
            observer.progress(title, done, total)

    for observer in observers:
        observer.stage_started(title)
    yield report
    for observer in observers:
        observer.stage_finished(title, time.perf_counter() - began, False)
