"""The log has everything; the terminal has nothing but errors of libraries."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.utils import logging as transformers_logging

from defensekit.utils.logging import log, logged, quiet


def stream_of(name: str) -> logging.StreamHandler[Any]:
    [handler] = [h for h in logging.getLogger(name).handlers if type(h) is logging.StreamHandler]
    return handler


def test_everything_said_goes_into_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stream_of("transformers").setStream(sys.stderr)
    with logged(tmp_path / "deep/run.log"):
        log.info("ours")
        logging.getLogger("transformers.some.place").warning("theirs")
        logging.getLogger("accelerate").warning("no handler of its own")
        logging.getLogger("a_plugin.of.somebody").warning("a plugin's")
        with quiet():  # as around every model that is loaded within a run
            pass
        logging.getLogger("transformers.some.place").error("broken \x1b[2J")
        warnings.warn("careful", UserWarning, stacklevel=1)
    text = (tmp_path / "deep/run.log").read_text()
    for line in (
        "INFO defensekit: ours",
        "WARNING transformers.some.place: theirs",
        "no handler",
        "a plugin's",
        "ERROR",
        "careful",
    ):
        assert line in text
    shown = capfd.readouterr().err
    assert "broken" in shown
    assert "\x1b" not in shown
    assert not [word for word in ("ours", "theirs", "no handler", "a plugin's", "careful") if word in shown]
    logging.getLogger("transformers.some.place").warning("afterwards")
    assert "afterwards" not in (tmp_path / "deep/run.log").read_text()
    assert "afterwards" in capfd.readouterr().err


def test_what_stops_a_run_is_in_its_log(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), logged(tmp_path / "run.log"):
        raise KeyboardInterrupt
    assert "the run stopped" in (tmp_path / "run.log").read_text()
    assert not [h for h in log.handlers if isinstance(h, logging.FileHandler)]


def test_libraries_are_as_they_were_afterwards() -> None:
    level, bars = stream_of("transformers").level, transformers_logging.is_progress_bar_enabled()

    def fail() -> None:
        assert stream_of("transformers").level == logging.ERROR
        assert not transformers_logging.is_progress_bar_enabled()
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"), quiet(), quiet():
        fail()
    assert (stream_of("transformers").level, transformers_logging.is_progress_bar_enabled()) == (level, bars)


def test_a_load_report_is_in_the_log_alone(tmp_path: Path, base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with logged(tmp_path / "run.log"):
        transformers.AutoModelForSequenceClassification.from_pretrained(base)  # its head is new: a warning
    assert "classifier" in (tmp_path / "run.log").read_text()
    assert capfd.readouterr().err == ""
