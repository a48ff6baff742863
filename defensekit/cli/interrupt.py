"""Ctrl-C that is not lost, should the exception that it raises be swallowed on the way."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from defensekit.cli.shared import fail
from defensekit.components import Observer


class Interrupt(Observer):
    """Raises a Ctrl-C again at the next sign of progress, should the run go on regardless."""

    def progress(self, title: str, done: int, total: int) -> None:
        _again()

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        _again()


_pressed: list[int] = []


@contextmanager
def remembered() -> Iterator[Interrupt]:
    """Remember every Ctrl-C within the block."""

    def remember(number: int, frame: FrameType | None) -> None:
        _pressed.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield Interrupt()
    finally:
        signal.signal(signal.SIGINT, before)
        _pressed.clear()


def _again() -> None:
    if _pressed:
        raise KeyboardInterrupt


@contextmanager
def ending(told: str) -> Iterator[None]:
    """End with a message and exit code 130 where Ctrl-C ends the block."""
    try:
        yield
    except BaseException as error:
        if interrupted(error):
            fail(told, 130)
        raise


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an exception: libraries turn it into one of their own when it meets them importing."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
