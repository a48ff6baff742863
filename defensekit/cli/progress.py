"""Progress on standard error: one view of all stages in a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from typing import Any

from pydantic import PrivateAttr
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from defensekit.components.runtime import Observer, Planned
from defensekit.pipeline.eta import RunEta, duration
from defensekit.utils.errors import printable

EVERY = 10.0  # seconds between the plain lines of one stage


class Progress(Observer):
    """Shows what a run is doing while the block lasts."""

    quiet: bool = False

    _console: Console = PrivateAttr()
    _bars: Bars = PrivateAttr()
    _whole: TaskID | None = PrivateAttr(default=None)
    _tasks: dict[str, TaskID] = PrivateAttr(default_factory=dict)
    _started: dict[str, float] = PrivateAttr(default_factory=dict)
    _said: float = PrivateAttr(default=0.0)
    _outlook: RunEta = PrivateAttr(default_factory=RunEta)

    def model_post_init(self, context: Any, /) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
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
        if not self.quiet:
            self._console.print(printable(text))

    def planned(self, stages: Sequence[Planned]) -> None:
        self._outlook = RunEta(stages)
        if self._live:
            self._whole = self._bars.add_task("all stages", total=self._outlook.total, left="")

    def stage_started(self, title: str) -> None:
        self._started[title] = self._said = time.monotonic()
        if self._live:
            self._tasks[title] = self._bars.add_task(title, total=None, left="")
            self._show(title, 0, 0)

    def progress(self, title: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._live:
            self._show(title, done, total)
        elif now - self._said > EVERY:
            self._said = now
            elapsed, share = now - self._started[title], done / total if total else 0.0
            if left := self._outlook.left(title, elapsed, share):
                left = f", {left} in all"
            elif share:
                left = f", {_left(elapsed, share)}"
            self.message(f"  {title}: {done} of {total}{left}")

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        self._outlook.finish(title, seconds, reused)
        if title in self._tasks:
            self._bars.remove_task(self._tasks.pop(title))
        count = f"[{len(self._outlook.done)}/{self._outlook.total}] " if self._outlook.stages else ""
        self.message(f"{count}{title}: " + ("cached" if reused else f"{seconds:.1f} s"))
        if self._whole is not None:
            self._bars.update(self._whole, total=self._outlook.total, left=self._outlook.left())
            self._bars.update(self._whole, completed=len(self._outlook.done))

    def _show(self, title: str, done: int, total: int) -> None:
        elapsed, share = time.monotonic() - self._started[title], done / total if total else 0.0
        left = _left(elapsed, share) if share else ""
        self._bars.update(self._tasks[title], completed=done, total=total or None, left=left)
        if self._whole is not None:
            self._bars.update(self._whole, left=self._outlook.left(title, elapsed, share))


def _left(elapsed: float, share: float) -> str:
    """How long the rest of a stage takes, of which a share took so many seconds."""
    return f"{duration(elapsed * (1 - share) / share)} left"
