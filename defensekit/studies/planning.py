"""What a study would do: its runs, the stages behind them, what is cached, how long the rest takes. Nothing is made."""

import gc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import fmean

from defensekit.pipeline.dry_run import requested
from defensekit.pipeline.experiment import Experiment, Request
from defensekit.pipeline.graph import Stage, closure
from defensekit.pipeline.identity import identified, identity
from defensekit.pipeline.plan import Plan
from defensekit.pipeline.preflight import Known, survey
from defensekit.pipeline.store import Store
from defensekit.result.schema import read_result
from defensekit.studies.folder import Folder
from defensekit.studies.loading import Study, StudyRun
from defensekit.utils.errors import UsageError

SAMPLE = 30  # results, at least, and artifacts of a kind that are read for an estimate


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study: its identity and its plan. What it asks for is asked of runs that have no result yet."""

    run: StudyRun
    plan: Plan
    identity: str

    @cached_property
    def _requests(self) -> list[Request]:
        experiment, answered = Experiment(self.plan), self.plan.answered
        if (known := answered.get("requests before the defense")) is None:
            known = answered["requests before the defense"] = requested(experiment.before_defense()), experiment.models
        before, experiment.models = known[0], {**known[1]}
        return [*before, *requested(experiment.the_defense())]

    @property
    def stages(self) -> Sequence[Stage]:
        """The stages it asks for, as far as they are known."""
        return [request.stage for request in self._requests if request.stage]

    @property
    def unknown(self) -> int:
        """How many are not known yet."""
        return sum(request.stage is None for request in self._requests)

    @property
    def id(self) -> str:
        """Names its files."""
        return self.identity[:16]


@dataclass
class StudyPlan:
    """The runs of a study in a workspace: ``done`` have a result, ``cached`` are the keys of artifacts in the store."""

    study: Study
    folder: Folder
    store: Store
    runs: Sequence[PlannedRun]
    done: set[str]
    cached: set[str] = field(default_factory=set)

    @property
    def todo(self) -> list[PlannedRun]:
        """The runs without a result."""
        return [run for run in self.runs if run.id not in self.done]

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """Every stage behind the runs that is known, by its key; inputs before what is made from them."""
        with _no_collection():
            return closure(stage for run in self.runs for stage in run.stages)

    @cached_property
    def missing(self) -> dict[str, Stage]:
        """The stages that the runs without a result need and the store has not."""
        with _no_collection():
            return closure((stage for run in self.todo for stage in run.stages), self.cached)

    @property
    def unknown(self) -> int:
        """Stages of the runs without a result that depend on a choice; some may turn out to be the same."""
        return sum(run.unknown for run in self.todo)

    def estimate(self) -> "StudyEstimate":
        """What the missing stages will take, judged by those that are there or that results remember."""
        counts = Counter(stage.plain["kind"] for stage in self.missing.values())
        sampled = {kind: self.store.sample(keys) for kind, keys in self._examples(counts).items()}
        seconds_by_kind = _recorded(sorted(self.folder.path.parent.glob("*/results/*.json")))
        seconds_by_kind |= {kind: seconds for kind, (seconds, _) in sampled.items()}
        seconds_by_kind |= _recorded(sorted(self.folder.results.glob("*.json")))
        return StudyEstimate(
            stages=dict(counts),
            seconds=sum(count * seconds_by_kind.get(kind, 0.0) for kind, count in counts.items()),
            bytes=int(sum(count * sampled[kind][1] for kind, count in counts.items() if kind in sampled)),
            unseen=sorted(counts.keys() - seconds_by_kind.keys()),
            unsized=sorted(counts.keys() - sampled.keys()),
        )

    def _examples(self, kinds: Iterable[str]) -> dict[str, list[str]]:
        """Some artifacts of each kind that are there, the study's own stages first."""
        examples: dict[str, list[str]] = defaultdict(list)
        for key, stage in self.stages.items():
            if key in self.cached and len(examples[stage.plain["kind"]]) < SAMPLE:
                examples[stage.plain["kind"]].append(key)
        if any(kind not in examples for kind in kinds):
            for key in islice(sorted(self.cached), 20 * SAMPLE):
                known = self.store.peek(key)
                if known and len(examples[known.stage["kind"]]) < SAMPLE:
                    examples[known.stage["kind"]].append(key)
        return {kind: keys for kind, keys in examples.items() if keys}


@dataclass(frozen=True)
class StudyEstimate:
    """``stages`` to make by kind, ``seconds`` one after the other, ``bytes`` of artifacts.

    Kinds count 0 where nothing is known of them: in the seconds ``unseen`` ones, in the bytes ``unsized`` ones.
    """

    stages: Mapping[str, int]
    seconds: float
    bytes: int
    unseen: Sequence[str]
    unsized: Sequence[str]


def _recorded(results: Sequence[Path]) -> dict[str, float]:
    """Seconds that a stage of each kind took, as some results remember it: models are removed from the store again."""
    seconds_by_kind: dict[str, dict[str, float]] = defaultdict(dict)
    for path in results[:: max(len(results) // SAMPLE, 1)]:  # some of every study
        with suppress(UsageError):  # an incomplete file, or one of another version
            for stage in read_result(path).stages:
                if stage.seconds is not None:
                    seconds_by_kind[stage.kind][stage.key] = stage.seconds
    return {kind: fmean(seconds.values()) for kind, seconds in seconds_by_kind.items()}


def plan_study(study: Study, workspace: str | Path, say: Callable[[str], None] = lambda text: None) -> StudyPlan:
    """The plan of a study in a workspace. Models and data that recipes name are looked at, each once.

    Raises:
        UsageError: a model or the data are not what was expected.
    """
    known = Known()
    folder = Folder(Path(workspace), study.name)
    with _no_collection():
        runs = [planned(run, known, say) for run in study.runs]
    store = Store(Path(workspace) / "store")
    return StudyPlan(study, folder, store, runs, folder.done(), store.keys())


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without looks for garbage: of thousands of plans everything stays, and looking takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def planned(run: StudyRun, known: Known, say: Callable[[str], None]) -> PlannedRun:
    """The plan of one run."""
    plan = survey(run.recipe, say, known)
    return PlannedRun(run, plan, identity(identified(plan)))
