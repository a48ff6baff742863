"""Progress on standard error: one view of all stages in a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from typing import Any

from pydantic import PrivateAttr
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from defensekit.cli.shared import console
from defensekit.components.runtime import Observer, Planned
from defensekit.pipeline.eta import RunEta, duration

EVERY = 10.0  # seconds between the plain lines of one stage


class Progress(Observer):
    """Shows what a run is doing while the block lasts."""

    quiet: bool = False

    _console: Console = PrivateAttr()
    _bars: Bars = PrivateAttr()
    _whole: TaskID | None = PrivateAttr(default=None)
    _tasks: dict[str, TaskID] = PrivateAttr(default_factory=dict)
    _started: dict[str, float] = PrivateAttr(default_factory=dict)
    _totals: dict[str, int] = PrivateAttr(default_factory=dict)
    _said: dict[str, float] = PrivateAttr(default_factory=dict)
    _eta: RunEta = PrivateAttr(default_factory=RunEta)

    def model_post_init(self, context: Any, /) -> None:
        """Set up the console."""
        self._console = console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._bars = Bars(*columns, console=self._console, transient=True, disable=self.quiet or not self._live)

    @property
    def _live(self) -> bool:
        return self._console.is_terminal

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def message(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            self._console.print(text)

    def planned(self, stages: Sequence[Planned]) -> None:
        """Take note of the stages ahead."""
        self._eta = RunEta(stages)
        if self._live:
            self._whole = self._bars.add_task("all stages", total=self._eta.total, left="")

    def stage_started(self, title: str) -> None:
        """Show a stage."""
        self._started[title] = self._said[title] = time.monotonic()
        if self._live and title not in self._tasks:  # two stages side by side may have one title, and share its bar
            self._tasks[title] = self._bars.add_task(title, total=None, left="")
            self._show(title, 0, 0)

    def progress(self, title: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        now = time.monotonic()
        if self._totals.setdefault(title, total) != total:  # of a search and then a training, each is counted anew
            self._totals[title], self._started[title] = total, now
        if self._live:
            self._show(title, done, total)
        elif now - self._said[title] > EVERY:
            self._said[title] = now
            elapsed, share = now - self._started[title], done / total if total else 0.0
            if left := self._eta.left(title, elapsed, share):
                left = f", {left} in all"
            elif share:
                left = f", {_left(elapsed, share)}"
            self.message(f"  {title}: {done} of {total}{left}")

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        """Print a line for a finished stage."""
        self._eta.finish(title, seconds, reused)
        self._hide(title)
        count = f"[{len(self._eta.done)}/{self._eta.total}] " if self._eta.stages else ""
        self.message(f"{count}{title}: " + ("cached" if reused else f"{seconds:.1f} s"))
        if self._whole is not None:
            self._bars.update(self._whole, total=self._eta.total, left=self._eta.left())
            self._bars.update(self._whole, completed=len(self._eta.done))

    def stage_failed(self, title: str, error: str) -> None:
        """Show a stage no longer: others may go on for a while."""
        self._eta.running.pop(title, None)
        self._hide(title)

    def _hide(self, title: str) -> None:
        if title in self._tasks:
            self._bars.remove_task(self._tasks.pop(title))

    def _show(self, title: str, done: int, total: int) -> None:
        elapsed, share = time.monotonic() - self._started[title], done / total if total else 0.0
        left = _left(elapsed, share) if share else ""
        if title in self._tasks:
            self._bars.update(self._tasks[title], completed=done, total=total or None, left=left)
        if self._whole is not None:
            self._bars.update(self._whole, left=self._eta.left(title, elapsed, share))


def _left(elapsed: float, share: float) -> str:
    """The remaining time of a stage, from the seconds that a share of it took."""
    return f"{duration(elapsed * (1 - share) / share)} left"
