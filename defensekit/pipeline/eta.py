"""Estimates of the remaining time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from defensekit.components.runtime import Planned


@dataclass
class RunEta:
    """The progress of a run, and its remaining time, estimated from finished stages of the same kind.

    ``running`` has the seconds and the share done of the stages that are computed.
    """

    stages: Sequence[Planned] = ()
    done: set[str] = field(default_factory=set)
    running: dict[str, tuple[float, float]] = field(default_factory=dict)
    took: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kinds = {stage.title: stage.kind for stage in self.stages}
        for stage in self.stages:
            if stage.seconds is not None:
                self.took.setdefault(stage.kind, []).append(stage.seconds)

    def finish(self, title: str, seconds: float, reused: bool) -> None:
        """Record a finished stage."""
        self.done.add(title)
        self.running.pop(title, None)
        if title in self.kinds and not reused:
            self.took.setdefault(self.kinds[title], []).append(seconds)

    @property
    def total(self) -> int:
        """The number of stages, including those that were added after planning."""
        return len(self.kinds.keys() | self.done)

    def left(self, title: str = "", elapsed: float = 0.0, share: float = 0.0) -> str:
        """The remaining time in words; ``share`` of the stage ``title`` took ``elapsed`` seconds."""
        if title:
            self.running[title] = (elapsed, share)
        seconds, known = 0.0, True
        for stage in self.stages:
            if stage.cached or stage.title in self.done:
                continue
            took = self.took.get(stage.kind)
            elapsed, share = self.running.get(stage.title, (0.0, 0.0))
            if share > 0:
                seconds += elapsed * (1 - share) / share
            elif took:
                seconds += max(fmean(took) - elapsed, 0.0)
            else:
                known = False  # no stage of its kind has finished yet
        seconds /= max(len(self.running), 1)
        if not self.stages or (not known and seconds < 1):
            return ""
        return f"{'about' if known else 'more than'} {duration(seconds)} left"


@dataclass
class StudyEta:
    """The remaining time of many runs: for each kind, the remaining stages times the seconds of one, in parallel.

    ``waiting`` has the kinds of the stages to compute, by key: two runs may title a shared stage differently.
    """

    waiting: dict[str, str]
    slots: int
    took: dict[str, list[float]] = field(default_factory=dict)

    def finish(self, key: str, seconds: float | None) -> None:
        """Record a finished stage."""
        if (kind := self.waiting.pop(key, None)) and seconds is not None:
            self.took.setdefault(kind, []).append(seconds)

    def left(self) -> str:
        """The remaining time in words; empty if it is unknown, or nothing is left."""
        kinds = Counter(self.waiting.values())
        took = {kind: fmean(seconds) for kind, seconds in self.took.items()}
        seconds = sum(number * took.get(kind, 0.0) for kind, number in kinds.items()) / self.slots
        known = kinds.keys() <= took.keys()
        return (
            f"{'about' if known else 'more than'} {duration(seconds)} left" if kinds and (known or seconds >= 1) else ""
        )


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
