"""What waits for what, and who does it."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from defensekit.pipeline.schedule import Schedule


def over(schedule: Schedule) -> Callable[[], bool]:
    return lambda: not schedule.waiting


def test_the_most_urgent_of_what_waits_for_nothing_goes_first() -> None:
    done: list[Any] = []
    schedule = Schedule(done.append)
    schedule.add("late", 3, [])
    schedule.add("early", 1, [])
    schedule.add("after late", 0, ["late"])
    schedule.add("next", 2, ["early", "done long ago"])
    schedule.work(over(schedule))
    assert done == ["early", "next", "late", "after late"]


def test_a_task_may_add_others_and_work_ends_when_it_is_enough() -> None:
    done: list[Any] = []

    def do(task: int) -> None:
        done.append(task)
        schedule.add(task + 1, task + 1, [task])  # it waits for what adds it, which is not done yet

    schedule = Schedule(do)
    schedule.add(0, 0, [])
    schedule.work(lambda: 3 not in schedule.waiting and 3 in done)
    assert done == [0, 1, 2, 3]
    assert set(schedule.waiting) == {4}


def test_several_threads_work_at_once_each_prepared_before_it_takes_a_task() -> None:
    both, prepared, who = threading.Barrier(2, timeout=60), [], {}

    def do(task: str) -> None:
        who[task] = threading.get_ident()
        both.wait()

    schedule = Schedule(do)
    threads = schedule.start(1, lambda: prepared.append(threading.get_ident()), lambda: len(who) == 2)
    time.sleep(0.05)
    assert not prepared  # there is nothing to do for it
    schedule.add("one", 0, [])
    schedule.add("two", 0, [])
    schedule.work(over(schedule))
    for thread in threads:
        thread.join(60)
    assert set(who) == {"one", "two"}
    assert set(who.values()) == {threading.get_ident(), *prepared}


@pytest.mark.parametrize("failing", ["task", "preparation"])
def test_an_error_ends_all_work(failing: str) -> None:
    def fail(*_: Any) -> None:
        raise ValueError(failing)

    schedule = Schedule(fail if failing == "task" else lambda task: time.sleep(0.5))
    schedule.add("one", 0, [])
    schedule.add("two", 0, ["one"])
    threads = schedule.start(1, fail if failing == "preparation" else lambda: None, over(schedule))
    schedule.work(over(schedule))
    for thread in threads:
        thread.join(60)
    assert str(schedule.stopped) == failing
    assert "two" in schedule.waiting
