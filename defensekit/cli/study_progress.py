"""Progress of a study: a live table in a terminal, a line per run elsewhere."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import PrivateAttr
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from defensekit.cli.shared import console
from defensekit.components.runtime import Observer, Planned
from defensekit.pipeline.eta import duration
from defensekit.result.schema import DEFENDED

NEXT = 5  # runs shown as next


class StudyProgress(Observer):
    """Shows the progress of a study while the block lasts."""

    quiet: bool = False

    _console: Console = PrivateAttr()
    _live: Live = PrivateAttr()
    _runs: list[str] = PrivateAttr(default_factory=list)
    _total: int = PrivateAttr(default=0)
    _done: int = PrivateAttr(default=0)
    _failed: int = PrivateAttr(default=0)
    _stages: dict[tuple[str, str], tuple[float, str]] = PrivateAttr(default_factory=dict)
    _left: str = PrivateAttr(default="")

    def model_post_init(self, context: Any, /) -> None:
        """Set up the console."""
        self._console = console(stderr=True)
        self._live = Live(console=self._console, get_renderable=self._table, transient=True, refresh_per_second=2)

    def __enter__(self) -> "StudyProgress":
        if self._console.is_terminal and not self.quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def study_started(self, runs: Sequence[str], slots: int) -> None:
        """Take note of the runs."""
        self._runs, self._total, self._done, self._failed = list(runs), len(runs), 0, 0

    def for_run(self, name: str, axes: Mapping[str, Any]) -> Observer:
        """An observer of one run."""
        return _RunProgress(study=self, name=name)

    def message(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            self._console.print(text)

    def planned(self, stages: Sequence[Planned]) -> None:
        """Take note of the stages ahead."""
        cached = sum(stage.cached for stage in stages)
        self.message(f"{len(stages)} stages behind the runs, {cached} of them cached")

    def time_left(self, left: str) -> None:
        """Take note of the remaining time."""
        self._left = left

    def stage_started(self, title: str) -> None:
        """A stage of no run is being computed: the rows of a track, before its cells."""
        self.stage("", title)

    def progress(self, title: str, done: int, total: int) -> None:
        """Show how far a stage of no run is."""
        self.stage("", title, done / total if total else 0.0)

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        """A stage of no run is finished."""
        self.end("", title)

    def stage_failed(self, title: str, error: str) -> None:
        """A stage of no run failed."""
        self.end("", title)

    def stage(self, run: str, title: str, share: float = 0.0) -> None:
        """A stage is being computed."""
        since = self._stages.get((run, title), (time.monotonic(), ""))[0]
        self._stages[(run, title)] = (since, f"{share:.0%}" if share else "")

    def end(self, run: str, title: str) -> None:
        """A stage is finished, or failed."""
        self._stages.pop((run, title), None)

    def over(self, run: str, outcome: str, failed: bool) -> None:
        """A run is finished, or failed."""
        if run in self._runs:
            self._runs.remove(run)
        self._done += not failed
        self._failed += failed
        if not self._runs:
            self._left = ""  # stages of failed runs are not computed
        self.message(f"[{self._done + self._failed}/{self._total}] {run}: {outcome}{self._rest}")

    @property
    def _rest(self) -> str:
        return f"; {self._left}" if self._left else ""

    def _table(self) -> Group:
        if not self._total and not self._stages:
            return Group()  # the runs are not known yet
        now = time.monotonic()
        table = Table("run", "stage", "for", "", box=box.SIMPLE_HEAD, pad_edge=False)
        stages = dict(self._stages)  # the runs' threads change it meanwhile
        for (run, title), (since, share) in stages.items():
            table.add_row(Text(run), Text(title), duration(now - since), share)
        going = {run for run, _ in stages}
        waiting = [run for run in list(self._runs) if run not in going]
        lines = [f"{self._done} done, {self._failed} failed, {len(self._runs)} to come{self._rest}"]
        lines += [f"next: {run}" for run in waiting[:NEXT]]
        return Group(table, *(Text(line) for line in lines))


class _RunProgress(Observer):
    """Observes one run of the study."""

    study: StudyProgress
    name: str

    def message(self, text: str) -> None:
        self.study.message(f"{self.name}: {text}")

    def stage_started(self, title: str) -> None:
        self.study.stage(self.name, title)

    def progress(self, title: str, done: int, total: int) -> None:
        self.study.stage(self.name, title, done / total if total else 0.0)

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        self.study.end(self.name, title)

    def stage_failed(self, title: str, error: str) -> None:
        self.study.end(self.name, title)

    def run_finished(self, result: Mapping[str, Any]) -> None:
        ended = DEFENDED[result["recipe"]["defense"]["stage"]]
        numbers = result["models"][ended]["metrics"].items()
        metrics = ", ".join(f"{name.upper()} {measured['value']:z.3f}" for name, measured in numbers)
        self.study.over(self.name, metrics, failed=False)

    def run_failed(self, error: str) -> None:
        self.study.over(self.name, f"failed: {error}", failed=True)
