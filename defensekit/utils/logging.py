"""Log files, and libraries kept quiet."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from defensekit.utils.errors import printable

LIBRARIES = ("transformers", "datasets", "accelerate", "huggingface_hub", "torch")

log = logging.getLogger("defensekit")


class _File(logging.FileHandler):
    """A log file whose own write errors, as on a full disk, are ignored: the run reports them itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Log everything within the block to a file: our messages, libraries', warnings, and an exception that ends it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _File(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # The root logger gets all messages except those of loggers that do not propagate.
    others = [log, *map(logging.getLogger, LIBRARIES)]
    loggers = [logging.getLogger(), *(logger for logger in others if not logger.propagate)]
    level = log.level
    for logger in loggers:
        logger.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with quiet(), _captured_warnings():
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
def _captured_warnings() -> Iterator[None]:
    """Python's warnings are logged within the block, and afterwards only if they were before."""
    shown = warnings.showwarning
    logging.captureWarnings(True)
    try:
        yield
    finally:
        if warnings.showwarning is not shown:
            logging.captureWarnings(False)


def _made_printable(record: logging.LogRecord) -> bool:
    """What a library says may have a stranger's text in it, and with it what moves a terminal's cursor."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, libraries show no progress bars and print only errors; their loggers still get everything."""
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
    handlers = [handler for name in LIBRARIES for handler in logging.getLogger(name).handlers]
    printing = [handler for handler in handlers if _made_printable not in handler.filters]  # by a block around
    bars, hub_bars = transformers.is_progress_bar_enabled(), not are_progress_bars_disabled()
    for handler, _ in muted:
        handler.setLevel(logging.ERROR)
    for printed in printing:
        printed.addFilter(_made_printable)
    transformers.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        for handler, level in muted:
            handler.setLevel(level)
        for printed in printing:
            printed.removeFilter(_made_printable)
        if bars:
            transformers.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
