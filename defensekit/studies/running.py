"""Running a study: every stage once, as many at a time as the executor has slots; failures are recorded."""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from defensekit.components import Observer, Planned, Workers, call_component, component_error
from defensekit.components.base import printable_name
from defensekit.pipeline.eta import StudyEta
from defensekit.pipeline.graph import Stage, closure
from defensekit.pipeline.run import Run
from defensekit.pipeline.runner import Runner
from defensekit.pipeline.schedule import Schedule
from defensekit.pipeline.store import key_of
from defensekit.result.schema import Result, read_result
from defensekit.studies.folder import Folder
from defensekit.studies.keys import Resume, resumed
from defensekit.studies.loading import Study
from defensekit.studies.planning import PlannedRun, StudyPlan, plan_study
from defensekit.studies.status import Status, alone
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit.utils.logging import log, logged

# What a study may remove again once no run needs it, by what it is to keep.
DROPPED: dict[str, set[str]] = {
    "predictions": {"train", "retune", "plant", "control", "statistics", "purify"},
    "suspects": {"retune", "control", "purify"},
    "models": set(),
}


@dataclass
class StudyOutcome:
    """The outcome of a study: counts of runs, of results before and after, and the errors of failed runs."""

    runs: int
    before: int
    done: int
    failed: dict[str, str]
    folder: Path


class NotCached(DefenseKitError):
    """A stage is not in the store, and nothing may be computed."""


class CacheOnlyWorkers(Workers):
    """Computes nothing: what is in the store has to do."""

    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        """Raise NotCached."""
        raise NotCached(f"{stage['title']} is not in the store")


def run_study(
    study: Study,
    workspace: str | Path = "workspace",
    observers: Sequence[Observer] = (),
    resume: Resume = "only-missing",
) -> StudyOutcome:
    """Compute every run of a study that has no result yet; failures are recorded, and the other runs continue.

    Args:
        study: the study that `load_study` returned.
        workspace: the folder of the store and of the studies' folders.
        observers: are notified of progress.
        resume: ``only-missing`` computes missing results, ``always`` computes all results again (from cached stages),
            ``never`` refuses to start if a result exists, ``only-cache`` computes no stage.

    Returns:
        Counts of runs and results, and the errors of failed runs.

    Raises:
        UsageError: a model or the data are not what was expected, or a result exists and ``resume`` is ``never``.
        DefenseKitError: a file or folder of the workspace can't be read or written.
    """
    resumed(resume)
    observers = [*observers, *(named.component for named in study.observers)]
    folder = Path(workspace)
    log_file = folder / "studies" / study.name / "study.log"
    try:
        with logged(log_file):
            plan = plan_study(study, folder, partial(_say, observers))
            before = sum(run.id in plan.done for run in plan.runs)
            if resume == "never" and before:
                raise UsageError(f"{plan.folder.path} has {before} results already, and resume is never")
            if resume == "always":
                plan.done.clear()
            plan.store.sweep()
            plan.folder.describe(description(plan))
            for file in {file for run in plan.runs for file in run.run.recipe.plugins}:
                plan.folder.keep_plugin(file)
            executor = study.executor.component
            opened = nullcontext(CacheOnlyWorkers()) if resume == "only-cache" else executor.open()
            with opened as workers, Status.of(plan) as status:
                failed = StudyDriver(plan, workers, [*observers, status], anew=resume == "always").drive()
    except OSError as error:
        raise DefenseKitError(f"{error.strerror or error}: {error.filename or folder}") from error
    finished = plan.folder.done()
    # Two places in a matrix may be the same run; one that failed now may have a result of before.
    done = sum(run.id in finished and run.id not in failed for run in plan.runs)
    return StudyOutcome(len(plan.runs), before, done, failed, plan.folder.path)


def _say(observers: Sequence[Observer], text: str) -> None:
    for observer in observers:
        call_component(observer, observer.message, text)


def description(plan: StudyPlan) -> dict[str, Any]:
    """A study as plain data, for those who read its folder: its keys, its axes, and every run with its id."""
    return {
        "schema_version": 1,
        "study": plan.study.keys.model_dump(mode="json"),
        "axes": plan.study.axes,
        "runs": [{"id": run.id, "axes": run.run.axes, "seed": run.run.recipe.seed} for run in plan.runs],
    }


class ModelTracker(Workers):
    """Writes down which models a study makes, before they are made: after a kill it may still remove them."""

    def __init__(self, workers: Workers, folder: Folder, kinds: set[str]) -> None:
        self.workers = workers
        self.folder = folder
        self.kinds = kinds
        self.recorded = folder.model_keys()
        self.computed: set[str] = set()

    @property
    def slots(self) -> int:
        """Those of the workers."""
        return self.workers.slots

    def prepare(self) -> None:
        """Prepare the workers."""
        self.workers.prepare()

    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        """Let the workers compute a stage, written down before if it is a model."""
        key = key_of(stage)
        self.computed.add(key)
        if stage["kind"] in self.kinds:
            self.folder.record_models([key])
            self.recorded.add(key)
            try:
                self.workers.execute(stage, store, report)
            except Exception:
                self.forget([key])  # it was not made: if it is in the store later, another process made it
                raise
            return
        self.workers.execute(stage, store, report)

    def forget(self, keys: Collection[str]) -> None:
        """Write down that models are not there any more."""
        if keys:
            self.recorded.difference_update(keys)
            self.folder.record_models(keys, removed=True)


class StudyDriver:
    """Makes the runs of a plan, with one thread per slot of the workers."""

    def __init__(self, plan: StudyPlan, workers: Workers, observers: Sequence[Observer], anew: bool) -> None:
        self.plan = plan
        self.store = plan.store
        self.observers = observers
        self.anew = anew
        self.runs = plan.todo
        self.failed_stages: dict[str, DefenseKitError] = {}
        self.failed: dict[str, str] = {}
        self.schedule = Schedule(self._make)  # of stages by their keys, and of runs by their numbers
        self.first: dict[str, tuple[int, Stage]] = {}  # every stage, with the number of the first run that needs it
        self.observer_lock = threading.RLock()  # observers hear one thing at a time
        self.dropped = DROPPED[plan.study.keys.keep]
        self.workers = ModelTracker(workers, plan.folder, self.dropped)
        self.holders: Counter[str] = Counter()
        self.eta = StudyEta({key: stage.plain["kind"] for key, stage in plan.missing.items()}, workers.slots)
        self.watchers: dict[str, list[Observer]] = {}

    # -- scheduling ------------------------------------------------------------------------------------------------

    def drive(self) -> dict[str, str]:
        """Make everything; returns what failed, by the runs' ids."""
        self._schedule()
        threads = self.schedule.start(self.workers.slots - 1, self.workers.prepare, self._over)
        try:
            self.schedule.work(self._over)
        except BaseException as error:  # Ctrl-C meets this thread while it waits as well
            self.schedule.stop(error)
            raise
        if self.schedule.stopped:
            raise self.schedule.stopped
        for thread in threads:
            thread.join()
        # A killed process may have left some behind; those of runs that failed are held for the next time, and those of
        # other processes, which may still need them, left to the last of these.
        left = self.workers.recorded if alone(self.plan.folder) else self.workers.computed & self.workers.recorded
        self._remove({key for key in left if self.holders[key] <= 0})
        return self.failed

    def _schedule(self) -> None:
        """Set up what waits for what. Stages that are shared are made before the runs that share them."""
        unsure: set[str] = set()
        for i, run in enumerate(self.runs):
            self.holders.update(closure(run.stages).keys())
            needs: set[str] = set()
            for stage in closure(run.stages, self.plan.cached).values():
                # Given rows take the labels of the test rows, which may not be known yet, and with them its key.
                if stage.plain["kind"] == "given" or any(needed.key in unsure for needed in stage.inputs):
                    unsure.add(stage.key)
                    continue
                needs.add(stage.key)
                if stage.key not in self.first:
                    self.first[stage.key] = (i, stage)
                    self.schedule.add(stage.key, (i, False), (needed.key for needed in stage.inputs))
            self.schedule.add(i, (i, True), needs)  # the earliest run's stages go first, and a run after its stages
        names = [str(run.run) for run in self.runs]
        with self.observer_lock:
            for observer in self.observers:
                call_component(observer, observer.study_started, names, self.workers.slots)
                call_component(observer, observer.planned, self._planned())

    def _planned(self) -> list[Planned]:
        stages = self.plan.stages.items()
        return [
            Planned(stage.plain["title"], stage.plain["kind"], key, 0.0 if key in self.plan.cached else None)
            for key, stage in stages
        ]

    def _over(self) -> bool:
        return not self.schedule.waiting

    def _make(self, what: str | int) -> None:
        if isinstance(what, int):
            self._run(self.runs[what])
        else:
            self._stage(*self.first[what])

    # -- making ----------------------------------------------------------------------------------------------------

    def _stage(self, run: int, stage: Stage) -> None:
        runner = self._runner(self.runs[run])
        try:
            runner.make(stage)
        except Exception as error:
            # The runs that need it say so; they look here before they try again.
            self.failed_stages.setdefault(stage.key, _as_defensekit_error(error))
            with self.observer_lock:
                if stage.key in self.eta.waiting:  # else it depends on another one that failed
                    for key in self._without(stage.key):
                        self.eta.finish(key, None)
        self._report_progress(runner)

    def _without(self, key: str) -> set[str]:
        """A stage that failed, and those that can't be made without it."""
        lost = {key}
        for stage in self.plan.missing.values():  # inputs come before what is made from them
            if any(needed.key in lost for needed in stage.inputs):
                lost.add(stage.key)
        return lost

    def _run(self, run: PlannedRun) -> None:
        runner = self._runner(run)
        try:
            if not self.anew and self.plan.folder.whole(run.id):  # by another process that runs the same study
                result = read_result(self.plan.folder.results / f"{run.id}.json")
            else:
                result = self._result(run, runner)
        except Exception as error:
            self._fail(run, runner, error)
            return
        self._report_progress(runner)
        self._notify(runner, "run_finished", result.model_dump())
        self._release(run, runner)

    def _report_progress(self, runner: Runner) -> None:
        """Notify observers how long the rest takes, now that some stages are finished."""
        with self.observer_lock:
            for stage in runner.records.values():
                self.eta.finish(stage.key, stage.seconds)
            for observer in self.observers:
                with self._catch_errors(observer):
                    observer.time_left(self.eta.left())

    def _result(self, run: PlannedRun, runner: Runner) -> Result:
        """The result of a run, written down."""
        finished = Run(run.plan, runner).result(self.plan.folder.path, examples=0)
        # Most stages were cached when the run was assembled: this study had computed them just before.
        stages = [
            stage.model_copy(update={"reused": stage.key not in self.workers.computed}) for stage in finished.stages
        ]
        result = finished.model_copy(update={"study": self.plan.study.name, "axes": run.run.axes, "stages": stages})
        # A result and its digest are two files. No stage has this lock: theirs begin with hexadecimal digits.
        with self.store.lock("results"):
            self.plan.folder.write(run.id, result)
        return result

    def _fail(self, run: PlannedRun, runner: Runner, error: Exception) -> None:
        """Write down what went wrong; the stages of the run stay for the next time."""
        if self.schedule.stopped:
            return  # the workers were taken from it
        text = str(_as_defensekit_error(error))
        log.error("%s: %s", run.run, text, exc_info=error)
        self.failed[run.id] = f"{run.run}: {text}"
        if not isinstance(error, NotCached):
            recipe = run.run.recipe.resolved()
            facts = {"run": str(run.run), "axes": run.run.axes, "identity": run.identity, "error": text}
            self.plan.folder.fail(run.id, {**facts, "recipe": recipe})
        self._notify(runner, "run_failed", text)

    def _notify(self, runner: Runner, event: str, what: object) -> None:
        """Notify observers that a run begins or how it ended; an observer that fails changes nothing of that."""
        for observer in runner.observers:
            with self.observer_lock, self._catch_errors(observer):
                getattr(observer, event)(what)

    @contextmanager
    def _catch_errors(self, observer: Observer) -> Iterator[None]:
        """Report an observer's error as one of its plugin; no run ends because of it."""
        try:
            yield
        except (Exception, SystemExit) as error:
            text = str(component_error(observer, f"failed: {printable_name(error, observer)}"))
            log.error("%s", text)
            for other in self.observers:
                with suppress(Exception):  # one that fails may be among them
                    other.warning(text)

    def _runner(self, run: PlannedRun) -> Runner:
        """What makes the stages of a run; its observers hear that it began before they hear of a stage."""
        with self.observer_lock:
            begins = run.id not in self.watchers
            watchers = self.watchers.setdefault(run.id, [])
            runner = Runner(self.store, self.workers, watchers, self.failed_stages, self.observer_lock)
            if begins:
                for observer in self.observers:
                    with self._catch_errors(observer):
                        watchers.append(observer.for_run(str(run.run), run.run.axes))
                self._notify(runner, "run_started", run.run.recipe.resolved())
        return runner

    def _release(self, run: PlannedRun, runner: Runner) -> None:
        """Remove the models that no run needs any more, if this study made them."""
        held = closure(run.stages).keys()
        with self.schedule.state:
            self.holders.subtract(held)
            self._remove({key for key in {*held, *runner.records} & self.workers.recorded if self.holders[key] <= 0})

    def _remove(self, keys: set[str]) -> None:
        # Some may have been made when `keep` said otherwise.
        artifacts = {key: self.store.peek(key) for key in keys}
        for key, artifact in artifacts.items():
            if artifact and artifact.stage["kind"] in self.dropped:
                self.store.remove(key)
        self.workers.forget([key for key, artifact in artifacts.items() if not self.store.has(key)])


def _as_defensekit_error(error: Exception) -> DefenseKitError:
    return error if isinstance(error, DefenseKitError) else DefenseKitError(f"{type(error).__name__}: {error}")
