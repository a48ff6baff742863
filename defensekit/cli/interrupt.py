"""Ctrl-C that still ends a run when something swallows the KeyboardInterrupt."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from defensekit.cli.shared import fail
from defensekit.components import Observer


class Interrupt(Observer):
    """Raises KeyboardInterrupt again at the next event, in case the run continued after Ctrl-C."""

    def progress(self, title: str, done: int, total: int) -> None:
        """Raise again."""
        _again()

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        """Raise again."""
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
def ending(message: str) -> Iterator[None]:
    """End with a message and exit code 130 where Ctrl-C ends the block."""
    try:
        yield
    except BaseException as error:
        if interrupted(error):
            fail(message, 130)
        raise


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused an exception: libraries turn it into their own exceptions during imports."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
