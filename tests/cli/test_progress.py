"""What a person sees while a run works."""

import io
import re
import time

import pytest
from rich.console import Console

from defensekit.cli.progress import Progress
from defensekit.cli.study_progress import StudyProgress
from defensekit.components import Planned
from defensekit.components.runtime import observed_step
from defensekit.pipeline.eta import RunEta, StudyEta

STAGES = [
    Planned("rows", "data", "a", 1.0),
    Planned("clean reference", "train", "b", None),
    Planned("suspect", "train", "c", None),
    Planned("answers", "predict", "d", None),
]


def test_the_time_left_is_what_stages_of_the_same_kind_took() -> None:
    eta = RunEta(STAGES)
    assert eta.left() == ""  # nothing like it was seen
    assert eta.left("clean reference", 10, 0.25) == "more than 30 s left"
    eta.finish("rows", 1.0, True)
    eta.finish("clean reference", 100, False)
    assert eta.left() == "more than 2 min left"
    assert eta.left("suspect", 20, 0) == "more than 80 s left"
    assert eta.left("suspect", 20, 0.5) == "more than 20 s left"
    eta.finish("suspect", 200, False)
    eta.finish("answers", 5, False)
    assert eta.left() == "about 0 s left"
    assert (len(eta.done), eta.total) == (4, 4)
    eta.finish("a stage that nobody planned", 5, False)
    assert (len(eta.done), eta.total) == (5, 5)


def test_stages_side_by_side_share_the_time_that_is_left() -> None:
    eta = RunEta(STAGES)
    eta.finish("rows", 1.0, True)
    eta.finish("answers", 1.0, False)
    assert eta.left("clean reference", 10, 0.25) == "more than 30 s left"
    assert eta.left("suspect", 10, 0.5) == "about 20 s left"  # 30 and 10 seconds, two at a time
    eta.finish("clean reference", 40, False)
    assert eta.left("suspect", 15, 0.75) == "about 5 s left"


def test_what_was_there_before_teaches_what_the_rest_will_take() -> None:
    eta = RunEta([Planned("one", "train", "a", 7200.0), Planned("two", "train", "b", None)])
    assert eta.left() == "about 2.0 h left"
    assert RunEta().left() == ""


def test_the_time_that_a_study_takes_is_counted_by_the_keys_of_its_stages() -> None:
    pace = StudyEta({"a": "train", "b": "train", "c": "predict"}, slots=2)
    assert pace.left() == ""
    pace.finish("a", 80.0)
    pace.finish("a", 80.0)  # two runs share it
    pace.finish("nobody planned it", 1.0)
    assert pace.left() == "more than 40 s left"
    pace.finish("c", None)
    assert pace.left() == "about 40 s left"
    pace.finish("b", 60.0)
    assert pace.left() == ""


def test_a_studys_table_says_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    def shown() -> str:
        console = Console(file=io.StringIO(), width=100)
        console.print(progress._table())
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    progress = StudyProgress()
    assert not shown().strip()  # while libraries load
    progress.stage_started("test rows")
    progress.progress("test rows", 1, 4)
    assert re.search(r"test rows +0 s +25%", shown()), "a stage of no run"
    progress.stage_finished("test rows", 1.0, False)
    assert not shown().strip()
    progress.study_started(["a, seed 0", "b, seed 0"], 1)
    assert "0 done, 0 failed, 2 to come\n" in shown()
    progress.time_left("about 8 s left")
    assert "0 done, 0 failed, 2 to come; about 8 s left\nnext: a, seed 0\n" in shown()
    for name in ("a, seed 0", "b, seed 0"):
        progress.for_run(name, {}).run_failed("no")
    assert "0 done, 2 failed, 0 to come\n" in shown()
    assert capsys.readouterr().err.splitlines() == [
        "[1/2] a, seed 0: failed: no; about 8 s left",
        "[2/2] b, seed 0: failed: no",
    ]
    progress.study_started(["c, seed 0"], 1)  # of a leaderboard's next row
    progress.for_run("c, seed 0", {}).run_failed("no")
    assert capsys.readouterr().err.splitlines() == ["[1/1] c, seed 0: failed: no"]


def test_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 11))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with Progress() as progress:
        progress.message("[not markup]")
        progress.planned(STAGES)
        progress.stage_finished("rows", 1.0, True)
        progress.stage_started("clean reference")
        progress.progress("clean reference", 1, 4)
        progress.progress("clean reference", 0, 0)
        progress.stage_finished("clean reference", 44.0, False)
        progress.message("\x1b[31mred")
    assert capsys.readouterr().err.splitlines() == [
        "[not markup]",
        "[1/4] rows: cached",
        "  clean reference: 1 of 4, more than 33 s left in all",
        "  clean reference: 0 of 0",
        "[2/4] clean reference: 44.0 s",
        "\\x1b[31mred",
    ]


def test_each_of_several_stages_has_its_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress() as progress:
        for title in ("clean reference", "suspect"):
            progress.stage_started(title)
        for done in range(1, 25):
            now[0] += 1
            for title in ("clean reference", "suspect"):
                progress.progress(title, done, 100)
        progress.stage_failed("suspect", "no")
    lines = [line.strip().partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == [f"{title}: {done} of 100" for done in (11, 22) for title in ("clean reference", "suspect")]


def test_work_that_nobody_planned_says_how_long_its_part_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 11))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with Progress() as progress, observed_step([progress], "curvature") as report:
        report(1, 4)
    assert capsys.readouterr().err.splitlines() == ["  curvature: 1 of 4, 33 s left", "curvature: 0.0 s"]


def test_parts_of_one_stage_are_counted_each_from_its_beginning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a search that took minutes nothing follows for the training behind it."""
    clock = iter((0, 11, 1000, 1100, 1200))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with Progress() as progress, observed_step([progress], "purified") as report:
        report(1, 2)
        report(0, 10)
        report(1, 10)
    assert capsys.readouterr().err.splitlines()[-2] == "  purified: 1 of 10, 15 min left"


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=True) as progress:
        progress.message("hello")
        progress.planned(STAGES)
        progress.stage_started("suspect")
        progress.progress("suspect", 1, 2)
        progress.stage_finished("suspect", 1.0, False)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_all_stages_and_the_one_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, soft_wrap=True, highlight=False)
    monkeypatch.setattr("defensekit.cli.progress.console", lambda **_: terminal)
    with Progress() as progress:
        progress.planned(STAGES)
        progress.stage_started("clean reference")
        progress.progress("clean reference", 5, 10)
        progress._bars.refresh()
        progress.stage_finished("clean reference", 3.0, False)
    shown = screen.getvalue()
    assert "all stages" in shown
    assert "clean reference" in shown
    assert "left" in shown
    assert "[1/4] clean reference: 3.0 s" in shown


def test_a_terminal_shows_every_stage_at_work_and_none_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr("defensekit.cli.progress.console", lambda **_: terminal)
    with Progress() as progress:
        progress.planned(STAGES)
        for title in ("clean reference", "suspect"):
            progress.stage_started(title)
            progress.progress(title, 5, 10)
        titles = [task.description for task in progress._bars.tasks]
        assert titles == ["all stages", "clean reference", "suspect"]
        progress.stage_failed("clean reference", "no")
        assert [task.description for task in progress._bars.tasks] == ["all stages", "suspect"]


def test_two_stages_of_one_title_share_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr("defensekit.cli.progress.console", lambda **_: terminal)
    with Progress() as progress:
        progress.planned(STAGES)
        for _ in range(2):
            progress.stage_started("statistics (fisher)")
        assert [task.description for task in progress._bars.tasks] == ["all stages", "statistics (fisher)"]
        progress.stage_finished("statistics (fisher)", 1.0, False)
        progress.progress("statistics (fisher)", 1, 2)  # of the other
        progress.stage_finished("statistics (fisher)", 2.0, False)
        assert [task.description for task in progress._bars.tasks] == ["all stages"]
