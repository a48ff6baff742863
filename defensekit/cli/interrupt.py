"""What surrounds a command's work: Ctrl-C that ends it even if something swallows the KeyboardInterrupt, progress."""

import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import FrameType

from defensekit.cli.progress import Progress
from defensekit.cli.shared import fail
from defensekit.cli.study_progress import StudyProgress
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


@contextmanager
def at_work(progress: Progress | StudyProgress, stopped: str = "stopped") -> Iterator[list[Observer]]:
    """Show progress on standard error, where all that is printed meanwhile goes too, and end at Ctrl-C.

    Args:
        progress: what shows it.
        stopped: the message at Ctrl-C.
    """
    gc.enable()
    with ending(stopped), remembered() as interrupt, progress, redirect_stdout(sys.stderr):
        progress.message("loading libraries")
        yield [interrupt, progress]


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused an exception: libraries turn it into their own exceptions during imports."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
