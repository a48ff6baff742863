"""Tasks that wait for one another, done by several threads."""

import heapq
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from itertools import count
from typing import Any


class Schedule:
    """Tasks, each of them after others; threads that work take the most urgent one that waits for nothing.

    Unlike graphlib's sorter it takes further tasks at any time: what a run needs may follow from what it computed.

    ``waiting`` has every task that is not done, with those that it waits for; ``stopped`` is what ended all work, an
    error that ``do`` raised or another. ``state`` guards both, and is notified when a task is done.
    """

    def __init__(self, do: Callable[[Any], None]) -> None:
        self.do = do
        self.waiting: dict[Hashable, set[Hashable]] = {}
        self.stopped: BaseException | None = None
        self.state = threading.Condition()
        self._urgency: dict[Hashable, Any] = {}
        self._after: defaultdict[Hashable, list[Hashable]] = defaultdict(list)
        self._ready: list[tuple[Any, int, Hashable]] = []
        self._numbers = count()

    def add(self, task: Hashable, urgency: Any, after: Iterable[Hashable]) -> None:
        """Add a task after others; of these, those that are not waiting are taken for done. Low urgency goes first."""
        with self.state:
            self._urgency[task] = urgency
            self.waiting[task] = {other for other in after if other in self.waiting}
            for other in self.waiting[task]:
                self._after[other].append(task)
            self._ready_now([task])

    def work(self, enough: Callable[[], bool]) -> None:
        """Do tasks in this thread until it is enough, or the work was stopped."""
        while True:
            with self.state:
                self.state.wait_for(lambda: self._ready or self.stopped or enough())
                if self.stopped or enough():
                    return
                *_, task = heapq.heappop(self._ready)
            try:
                self.do(task)
            except BaseException as error:
                self.stopped = self.stopped or error
            with self.state:
                del self.waiting[task]
                freed = self._after.pop(task, [])
                for other in freed:
                    self.waiting[other].discard(task)
                self._ready_now(freed)
                self.state.notify_all()

    def start(self, threads: int, prepare: Callable[[], None], enough: Callable[[], bool]) -> list[threading.Thread]:
        """Let further threads work as well, each prepared once there is something for it to do."""

        def help_out() -> None:
            with self.state:
                self.state.wait_for(lambda: self._ready or self.stopped or enough())
                if self.stopped or enough():
                    return
            try:
                prepare()
            except BaseException as error:
                self.stop(error)
            self.work(enough)

        helpers = [threading.Thread(target=help_out, daemon=True) for _ in range(threads)]
        for helper in helpers:
            helper.start()
        return helpers

    def stop(self, error: BaseException) -> None:
        """End all work: no thread takes another task."""
        with self.state:
            self.stopped = self.stopped or error
            self.state.notify_all()

    def _ready_now(self, tasks: Iterable[Hashable]) -> None:
        for task in tasks:
            if not self.waiting[task]:
                heapq.heappush(self._ready, (self._urgency.pop(task), next(self._numbers), task))
                self.state.notify_all()
