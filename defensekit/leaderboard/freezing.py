"""What a track rests on: the digests of its base, its data, and every row of its cells. Nothing is trained."""

from collections.abc import Sequence
from pathlib import Path

from defensekit.components import Observer
from defensekit.leaderboard.answers import needs_more
from defensekit.leaderboard.composition import cell_of, study_for
from defensekit.leaderboard.keys import Digests
from defensekit.leaderboard.tracks import Cell, Track
from defensekit.pipeline.graph import Stage
from defensekit.pipeline.plan import Plan
from defensekit.pipeline.runner import Runner
from defensekit.pipeline.store import Store
from defensekit.recipe import yaml_document
from defensekit.studies.planning import plan_study
from defensekit.text import ROLES, ROWS, Row, read_rows
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit.utils.files import atomic_write, data_digest

HEADING = "\n# Written by `defensekit leaderboard freeze`.\n"


def freeze(track: Track, workspace: Path, observers: Sequence[Observer] = ()) -> None:
    """Write a track's digests into its file, or its attack's, in place of those that are there.

    Raises:
        UsageError: the base or the data are not what was expected, or a metric reads more than answers, which are what
            a row has.
    """
    for run in study_for(track, None).runs:
        for i, metric in enumerate(run.recipe.metrics):
            if needs_more(metric.component):
                where = run.recipe.describe_location("metrics", str(i))
                raise UsageError(f"{where}: {metric.name} reads more than answers, and a row has nothing else")
    digests = digests_of(track, workspace, observers)
    written = yaml_document.dump({"digests": digests.model_dump()})
    atomic_write(track.path, (unfrozen(track.path) + HEADING + written).encode())


def unfrozen(path: Path) -> str:
    """The text of a track's or an attack's file without what `freeze` wrote."""
    return path.read_text(encoding="utf-8").partition(HEADING)[0]


def check_frozen(track: Track, cells: Sequence[Cell], workspace: Path, observers: Sequence[Observer] = ()) -> None:
    """Compare a track's digests with what is here, before anything is trained.

    Raises:
        DefenseKitError: base, data or rows are not those of the track.
    """
    frozen, here = track.digests, digests_of(track, workspace, observers, cells)
    for what in ("model", "data"):
        if getattr(here, what) != getattr(frozen, what):
            raise DefenseKitError(f"the {what} of {track.name} is another one here; nothing can be compared with it")
    for attack, seed in cells:
        index = track.keys.seeds.index(seed)
        for what in ("rows", "labels"):
            if getattr(here, what)[attack][index] != getattr(frozen, what)[attack][index]:
                raise DefenseKitError(
                    f"the rows of {attack}, seed {seed}, are not those of {track.name}: the attack's code or the data "
                    "are of another version than the track was made with"
                )


def digests_of(
    track: Track, workspace: Path, observers: Sequence[Observer] = (), cells: Sequence[Cell] | None = None
) -> Digests:
    """The digests as they are here; of cells that were not asked for they are empty."""

    def say(text: str) -> None:
        for observer in observers:
            observer.message(text)

    study = study_for(track, None, cells)
    planned = plan_study(study, workspace, say)
    with study.executor.component.open() as workers:
        runner = Runner(Store(workspace / "store"), workers, observers)
        digests: dict[Cell, tuple[str, str]] = {}
        for run in planned.runs:
            digests[cell_of(run.run.axes, run.run.recipe.seed)] = _rows(run.plan, runner)
    first = planned.runs[0].plan

    def each(which: int) -> dict[str, list[str]]:
        return {
            attack: [digests.get((attack, seed), ("0" * 64,) * 2)[which] for seed in track.keys.seeds]
            for attack in track.attacks
        }

    base = first.base.digest if track.keys.base == "frozen" else None
    return Digests(model=base, data=str(first.contents["data"]), rows=each(0), labels=each(1))


def _rows(plan: Plan, runner: Runner) -> tuple[str, str]:
    """The digests of a cell's rows, and of the test rows' numbers and labels."""
    triggered = plan.triggered()
    stages: dict[str, Stage] = {f"{role} rows": plan.rows(role) for role in ROLES}
    stages |= {"poisoned rows": plan.poisoned(), **({"triggered rows": triggered} if triggered else {})}
    artifacts = {title: runner.make(stage) for title, stage in stages.items()}
    asked = {"plain": artifacts["test rows"], "triggered": artifacts["triggered rows"]}
    rows = {on: read_rows(artifact.files / ROWS) for on, artifact in asked.items()}
    labels = {on: _columns(some) for on, some in rows.items()}
    return digest_of_rows({title: artifact.digest for title, artifact in artifacts.items()}), digest_of_labels(labels)


def digest_of_rows(stages: dict[str, str | None]) -> str:
    """The digest of the rows that a cell rests on, from the digests of their files by the stages' titles."""
    titles = [*(f"{role} rows" for role in ROLES), "poisoned rows", "triggered rows"]
    return data_digest({title: stages.get(title) for title in titles})


def _columns(rows: Sequence[Row]) -> list[list[int]]:
    aims = [row.aim for row in rows if row.aim is not None]
    return [[row.id for row in rows], [row.label for row in rows], *([aims] if aims else [])]


def digest_of_labels(labels: dict[str, list[list[int]]]) -> str:
    """The digest of the plain and the triggered test rows' numbers, true labels, and targets of their own, if any."""
    return data_digest({on: labels[on] for on in ("plain", "triggered")})
