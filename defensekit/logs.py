"""What is logged and shown: a file with everything, and libraries that keep out of the way unless they fail."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

LIBRARIES = ("transformers", "datasets", "accelerate", "huggingface_hub", "torch", "py.warnings")

log = logging.getLogger("defensekit")


class _File(logging.FileHandler):
    """A log file that a full disk silences: the run's own error says what is wrong."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Everything that we, libraries and Python's warnings say within the block goes into a file, what stops it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _File(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [log, *map(logging.getLogger, LIBRARIES)]
    level = log.level
    for logger in loggers:
        logger.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with quiet(), _warnings_into(handler):
            yield
    except BaseException:
        log.exception("the run stopped")
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        log.setLevel(level)
        with suppress(OSError):
            handler.close()


@contextmanager
def _warnings_into(handler: logging.Handler) -> Iterator[None]:
    """Python's warnings go to a handler within the block, and nowhere else."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = f"{filename}:{lineno}: {category.__name__}: {message}"
        handler.handle(logging.LogRecord("py.warnings", logging.WARNING, filename, lineno, text, None, None))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, libraries show no bars and print nothing but errors; their loggers still hear everything."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as transformers

    muted = [
        (handler, handler.level)
        for name in LIBRARIES
        for handler in logging.getLogger(name).handlers
        if type(handler) is logging.StreamHandler and handler.level < logging.ERROR
    ]
    bars, hub_bars = transformers.is_progress_bar_enabled(), not are_progress_bars_disabled()
    for handler, _ in muted:
        handler.setLevel(logging.ERROR)
    transformers.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        for handler, level in muted:
            handler.setLevel(level)
        if bars:
            transformers.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
