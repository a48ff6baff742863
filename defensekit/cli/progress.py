"""Progress on standard error: bars in a terminal, plain lines elsewhere."""

import time
from typing import Any

from pydantic import PrivateAttr
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from defensekit.components.runtime import Observer

EVERY = 10.0  # seconds between the plain lines of one stage


class Progress(Observer):
    """Shows what a run is doing while the block lasts."""

    quiet: bool = False

    _console: Console = PrivateAttr()
    _bars: Bars = PrivateAttr()
    _tasks: dict[str, TaskID] = PrivateAttr(default_factory=dict)
    _said: dict[str, float] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any, /) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
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
            self._console.print(text, markup=False)

    def stage_started(self, title: str) -> None:
        if self._live:
            self._tasks[title] = self._bars.add_task(title, total=None)
        self._said[title] = time.monotonic()

    def progress(self, title: str, done: int, total: int) -> None:
        if self._live:
            self._bars.update(self._tasks[title], completed=done, total=total)
        elif time.monotonic() - self._said[title] > EVERY:
            self._said[title] = time.monotonic()
            self.message(f"  {title}: {done} of {total}")

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        if title in self._tasks:
            self._bars.remove_task(self._tasks.pop(title))
        self.message(f"{title}: " + ("there already" if reused else f"{seconds:.1f} s"))
