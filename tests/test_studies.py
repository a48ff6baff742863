"""Studies: a matrix of runs, every stage once, nothing lost."""

import gc
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from typer.testing import CliRunner

import defensekit
from defensekit.cli.main import app
from defensekit.components import Executor, Observer, Planned, Workers
from defensekit.pipeline.dry_run import Needs
from defensekit.pipeline.executors import compute
from defensekit.pipeline.identity import IDENTITY, NOT_IDENTITY, identified, identity
from defensekit.pipeline.preflight import Known, survey
from defensekit.pipeline.store import Store, key_of
from defensekit.recipe.keys import DefenseKeys, InputDefenseKeys, Keys, Top, TriggeredKeys
from defensekit.recipe.loader import load_recipe
from defensekit.recipe.recipe import Named
from defensekit.result.schema import Result, StageRecord, read_result
from defensekit.studies.folder import Folder
from defensekit.studies.loading import Study, label_of, load_study
from defensekit.studies.planning import plan_study, planned
from defensekit.studies.rerun import differences, rerun
from defensekit.studies.running import run_study
from defensekit.studies.status import status_of
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit_executors.local import Local
from tests.conftest import slow_but
from tests.studies import model
from tests.studies import result as made_up
from tests.test_pipeline import shape

MATRIX = {"defense.scorer": ["diffusion", "magnitude"], "defense.selector.fraction": [0.25, 0.5]}


@pytest.fixture
def recipe(recipe: Path) -> Path:
    """The tiny BERT's recipe, small enough to be run many times."""
    return shape(recipe, data__train=48, data__test=24, data__clean=16, training__epochs=1, defense__choose=None)


def study(beside: Path, **keys: Any) -> Path:
    """A study's file beside a recipe's."""
    path = beside.parent / "study.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "recipe": beside.name, "matrix": MATRIX, **keys}, sort_keys=False))
    return path


def numbers(result: Result | Mapping[str, Any]) -> Any:
    """What has to come out the same, as plain data."""
    found = result.model_dump(mode="json") if isinstance(result, Result) else result
    models = {name: [model["metrics"], model["reset"]] for name, model in found["models"].items()}
    return json.loads(json.dumps([found["chosen"], found["curve"], models]))


def results(folder: Path) -> dict[tuple[Any, ...], Any]:
    """The numbers of every run, by its place in the matrix."""
    found = [json.loads(path.read_text()) for path in (folder / "results").glob("*.json")]
    return {(*result["axes"].values(), result["recipe"]["seed"]): numbers(result) for result in found}


# -- a file ------------------------------------------------------------------------------------------------------------


def test_every_combination_is_a_run_and_some_are_taken_out_or_put_beside(recipe: Path) -> None:
    path = study(
        recipe,
        matrix={
            "defense.scorer": ["magnitude", {"name": "diffusion", "exponent": 2}],
            "attack": {
                "word": {"attack.rate": 0.1},
                "sentence": {"attack": {"name": "sentence", "rate": 0.2, "target": "negative"}, "training.epochs": 2},
            },
        },
        exclude=[{"defense.scorer": "magnitude", "attack": "sentence"}],
        include=[{"attack": "word", "defense.scorer": "random"}, {"defense.selector.fraction": 0.75}],
        seeds=[0, 7],
    )
    rows = load_study(path).rows
    assert [str(row) for row in rows] == [
        "magnitude, word, seed 0", "magnitude, word, seed 7",
        "diffusion(exponent=2), word, seed 0", "diffusion(exponent=2), word, seed 7",
        "diffusion(exponent=2), sentence, seed 0", "diffusion(exponent=2), sentence, seed 7",
        "random, word, seed 0", "random, word, seed 7",
        "0.75, seed 0", "0.75, seed 7",
    ]  # fmt: skip
    sentence = rows[4].recipe
    assert sentence.attack is not None
    assert (sentence.attack.name, sentence.training.epochs) == ("sentence", 2)
    assert sentence.defense.scorer is not None
    assert sentence.defense.scorer.parameters()["exponent"] == 2.0
    assert (rows[-1].recipe.defense.scorer.name, rows[-1].recipe.seed) == ("diffusion", 7)
    # A run is the recipe that a person would have written.
    by_hand = load_recipe(recipe, ["defense.scorer.exponent=2", "attack.rate=0.1", "seed=7"])
    assert rows[3].recipe.resolved() == by_hand.resolved()


@pytest.mark.parametrize("order", [("defense.choose", "defense.scorer"), ("defense.scorer", "defense.choose")])
def test_a_variant_takes_a_key_back_wherever_it_says_so(recipe: Path, order: tuple[str, str]) -> None:
    shape(recipe, defense__choose={"rule": "accuracy-floor", "values": [0.5]})
    changes = {"defense.choose": None, "defense.scorer": "magnitude"}
    path = study(recipe, matrix={"how": {"fixed": {key: changes[key] for key in order}}})
    [row] = load_study(path).rows
    assert (row.recipe.choose, row.recipe.defense.scorer and row.recipe.defense.scorer.name) == (None, "magnitude")


def test_a_recipe_may_stand_in_the_study_and_a_matrix_may_be_missing(recipe: Path) -> None:
    inline = yaml.safe_load(recipe.read_text())
    del inline["name"]
    path = study(recipe, recipe=inline, matrix={})
    [row] = load_study(path, "seeds=[3]").rows
    assert (row.recipe.name, row.recipe.seed, row.axes) == ("small", 3, {})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"matrx": {}}, r"study.yaml:\d+: matrx: unknown key. Did you mean 'matrix'"),
        ({"recipe": "pico.yml"}, r"study.yaml:\d+: recipe: there is no file .*Did you mean 'pico.yaml'"),
        ({"matrix": {"defense.scorer": ["diffusoin"]}}, r"study.yaml:\d+: defense.scorer.*'diffusion'.*in the run"),
        ({"matrix": {"defense.scorer": []}}, r"study.yaml:\d+: matrix.defense.scorer: an axis needs values"),
        ({"matrix": {"seed": [0, 1]}}, r"'seed' is no axis: `seeds:` says"),
        ({"matrix": {"a": {"b": {"executor": "local"}}}}, r"matrix.a.b.executor: 'executor' is no axis"),
        ({"matrix": {"defense.scorer": ["random", "random"]}}, "two values are called 'random'"),
        ({"matrix": {}, "exclude": [{"defense.scorer": "random"}]}, "exclude.0.defense.scorer: there is no such axis"),
        ({"exclude": [{}]}, r"study.yaml:\d+: exclude: every run of the matrix is left out"),
        ({"exclude": [{"defense.scorr": "random"}]}, r"exclude.0.defense.scorr: there is no such axis. Did you mean"),
        ({"exclude": [{"defense.scorer": "magnitud"}]}, r"there is no value 'magnitud'. Did you mean 'magnitude'"),
        ({"include": [{"defense.scorer": "diffusion", "defense.selector.fraction": 0.5}]}, "stands twice"),
        ({"executor": "lokal"}, r"study.yaml:\d+: executor.*Did you mean 'local'"),
        ({"keep": "all"}, r"study.yaml:\d+: keep: "),
        ({"seeds": []}, r"study.yaml:\d+: seeds: "),
        ({"seeds": [0, -1]}, r"study.yaml:\d+: seeds.1: "),
        ({"seeds": [3, 0, 3]}, r"study.yaml:\d+: seeds.2: 3 stands twice"),
        ({"recipe": {"extends": "pico.yaml"}}, r"study.yaml:\d+: recipe.extends: .*name it here"),
    ],
)  # fmt: skip
def test_mistakes_in_a_study_are_told_with_their_place(recipe: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_study(study(recipe, **keys))


def test_a_recipe_is_no_study(recipe: Path) -> None:
    with pytest.raises(UsageError, match=r"pico.yaml:1: this is a recipe: `defensekit run` runs it"):
        load_study(recipe)


def test_an_axis_that_the_rule_chooses_is_refused(recipe: Path) -> None:
    chosen = {"rule": "accuracy-floor", "values": [0.5]}
    shaped = shape(recipe, defense__choose=chosen)
    with pytest.raises(UsageError, match=r"matrix.defense.selector.fraction: the rule 'accuracy-floor' chooses this"):
        load_study(study(shaped))
    load_study(study(shaped, matrix={"defense.choose.max_drop": [0.01, 0.02]}))


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("reset", "reset"),
        (0.5, 0.5),
        ({"name": "fine-tune", "epochs": 2}, "fine-tune(epochs=2)"),
        (["reset", {"name": "fine-tune"}], "reset + fine-tune"),
        (None, "none"),
    ],
)
def test_values_have_short_names(value: Any, label: Any) -> None:
    assert label_of(value) == label


@pytest.mark.parametrize(("name", "runs"), [("scorers", 63), ("estimators", 81), ("scopes", 36), ("purifiers", 54)])
def test_studies_that_ship_load(name: str, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFENSEKIT_TEST_DATA", "/nowhere")
    rows = load_study(Path(__file__).parent.parent / "studies" / f"{name}.yaml").rows
    assert len(rows) == runs
    assert {str(row.axes["attack"]) for row in rows} == {"word", "sentence", "syntactic"}


# -- identity ----------------------------------------------------------------------------------------------------------


def test_every_key_of_a_recipe_is_identity_or_is_not() -> None:
    inner: dict[str, tuple[type[Keys], ...]] = {
        "defense": (DefenseKeys, InputDefenseKeys),
        "triggered": (TriggeredKeys,),
    }
    keys = Top.model_fields.keys() - inner.keys()
    keys |= {f"{key}.{name}" for key, parts in inner.items() for part in parts for name in part.model_fields}
    assert keys == IDENTITY | NOT_IDENTITY
    assert not IDENTITY & NOT_IDENTITY


def test_a_runs_identity_is_the_same_before_and_after_and_elsewhere(recipe: Path, tmp_path: Path) -> None:
    before = identity(identified(survey(load_recipe(recipe), lambda text: None)))
    result = defensekit.run(recipe, tmp_path / "w")
    assert result.identity == before == identity(json.loads(result.model_dump_json())["identified"])
    assert str(tmp_path) not in json.dumps(result.identified)
    elsewhere = shutil.copytree(load_recipe(recipe).model.parameters()["path"], tmp_path / "elsewhere")
    assert identity(identified(survey(load_recipe(recipe, f"model={elsewhere}"), lambda text: None))) == before
    renamed = shape(recipe, name="other", observers=[])
    assert identity(identified(survey(load_recipe(renamed), lambda text: None))) == before


@pytest.mark.parametrize(
    "setting",
    ["seed=1", "data.clean=17", "data.max_length=31", "attack.rate=0.3", "training.epochs=2", "metrics=[acc]",
     "defense.scorer=magnitude", "defense.compare={}", "defense.purifier=[reset]", "precision=bfloat16"],
)  # fmt: skip
def test_what_decides_numbers_is_identity(recipe: Path, setting: str) -> None:
    def known(*settings: str) -> str:
        return identity(identified(survey(load_recipe(recipe, settings), lambda text: None)))

    assert known(setting) != known()


# -- planning ----------------------------------------------------------------------------------------------------------


def test_a_plan_counts_what_runs_share_and_makes_nothing(recipe: Path, tmp_path: Path) -> None:
    plan = plan_study(load_study(study(recipe)), tmp_path / "w")
    kinds = Counter(stage.plain["kind"] for stage in plan.stages.values())
    # Four defenses, random at each of two fractions, fine-tuning alone; one suspect, one clean reference.
    assert kinds == {"data": 4, "poison": 1, "trigger": 1, "train": 2, "statistics": 1, "purify": 7, "predict": 18}
    assert plan.missing.keys() == plan.stages.keys()
    assert plan.estimate().unseen == sorted(kinds)
    assert not (tmp_path / "w").exists()
    # Models are removed again, and results remember what they took: of other studies, of this one first.
    train = StageRecord(title="suspect", kind="train", key="a", reused=False, seconds=40.0)
    unknown = StageRecord(title="purified", kind="purify", key="b", reused=True, seconds=None)
    other = Folder(tmp_path / "w", "other")
    other.write("a", made_up({"purified": model({"acc": 1.0})}, stages=[train, unknown]))
    other.write("b", made_up({"purified": model({"acc": 1.0})}, stages=[train]))
    assert plan.estimate().seconds == 80
    assert plan.estimate().unseen == sorted(kinds.keys() - {"train"})
    assert plan.estimate().unsized == sorted(kinds)
    quick = train.model_copy(update={"seconds": 10.0})
    plan.folder.write("c", made_up({"purified": model({"acc": 1.0})}, stages=[quick]))
    assert plan.estimate().seconds == 20
    (plan.folder.results / "c.json").write_text("{")
    assert plan.estimate().seconds == 80
    # What is planned is what a run of each recipe would make.
    alone = {stage.key for row in plan.study.rows for stage in defensekit.preview(row.recipe, tmp_path / "w")}
    assert alone == set(plan.stages)


AXES = [
    "{data.clean: [16, 32], data.dev: [16, 32], data.max_length: [16, 32]}",
    "{attack.rate: [0.1, 0.2], training.epochs: [1, 2]}",
    "{metrics: [[acc], [acc, asr], [ece]]}",
    "{precision: [float32, bfloat16]}",
    "{defense.scorer: [magnitude, random], defense.purifier: [[reset], [prune]]}",
]


@pytest.mark.parametrize("matrix", AXES)
def test_runs_planned_together_have_the_keys_of_runs_planned_alone(recipe: Path, tmp_path: Path, matrix: str) -> None:
    """What runs share is asked once: that must hang on everything that it follows from."""
    path = recipe.with_name("study.yaml")
    path.write_text(f"name: together\nrecipe: {recipe.name}\nseeds: [0, 1]\nmatrix: {matrix}\n")
    together = plan_study(load_study(path), tmp_path / "w").runs
    assert len(together) > 2
    for run in together:
        alone = planned(run.row, Known(), lambda text: None)
        assert alone.identity == run.identity
        assert [stage.key for stage in alone.stages] == [stage.key for stage in run.stages]
        assert alone.unknown == run.unknown


def test_what_has_a_result_is_not_planned(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_study(load_study(study(recipe)), tmp_path / "w")
    for run in plan.runs[1:]:
        plan.folder.write_bytes(run.id, b"{}")
    again = plan_study(load_study(study(recipe)), tmp_path / "w")
    asked: list[Any] = []
    monkeypatch.setattr(
        "defensekit.studies.planning.Needs", lambda plan, store: asked.append(plan) or Needs(plan, store)
    )
    assert [run.id for run in again.todo] == [plan.runs[0].id]
    assert again.missing
    assert len(asked) == 1


@pytest.mark.slow
def test_an_estimate_rests_on_what_stages_took(recipe: Path, tmp_path: Path) -> None:
    path = study(recipe)
    run_study(load_study(path), tmp_path / "w")
    more = plan_study(load_study(path, "seeds=[0,1]"), tmp_path / "w")
    assert (len(more.runs), len(more.todo)) == (8, 4)
    estimate = more.estimate()
    assert estimate.stages["train"] == 2
    assert estimate.seconds > 0
    assert estimate.bytes > 0
    # Models were removed again: results remember seconds, and nobody how large one is.
    assert estimate.unseen == []
    assert estimate.unsized == ["purify", "statistics", "train"]


# -- running -----------------------------------------------------------------------------------------------------------


class _Counting(Workers):
    """Computes here, or lets others do it, and counts."""

    def __init__(self) -> None:
        self.computed: Counter[str] = Counter()
        self.busy = self.most = 0
        self.others: Workers | None = None
        self.lock = threading.Lock()

    @property
    def slots(self) -> int:
        return self.others.slots if self.others else 1

    def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
        with self.lock:
            self.computed[key_of(stage)] += 1
            self.busy += 1
            self.most = max(self.most, self.busy)
        try:
            (self.others.execute if self.others else compute)(stage, store, report)
        finally:
            with self.lock:
                self.busy -= 1


def counted(path: Path, counting: _Counting, workers: int = 0) -> Study:
    """A study whose stages a counter sees: computed here, or by so many processes."""

    class Counted(Executor):
        @contextmanager
        def open(self) -> Iterator[Workers]:
            with Local(workers=workers).open() if workers else nullcontext() as counting.others:
                yield counting

    return replace(load_study(path), executor=Named("counted", Counted()))


def test_every_stage_is_made_once_and_numbers_are_those_of_single_runs(recipe: Path, tmp_path: Path) -> None:
    path, workers = study(recipe), _Counting()
    told: dict[str, list[str]] = defaultdict(list)
    lefts: list[str] = []

    class Telling(Observer):
        name: str = ""

        def for_run(self, name: str, axes: Mapping[str, Any]) -> Observer:
            return Telling(name=name)

        def run_started(self, recipe: Mapping[str, Any]) -> None:
            told[self.name].append("started")

        def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
            told[self.name].append("stage")

        def outlook(self, left: str) -> None:
            lefts.append(left)

        def run_finished(self, result: Mapping[str, Any]) -> None:
            told[self.name].append(result["study"])

    found = run_study(counted(path, workers), tmp_path / "w", [Telling()])
    assert (found.runs, found.before, found.done, found.failed) == (4, 0, 4, {})
    assert len(told) == 4
    assert re.fullmatch(r"about \d+ s left", next(left for left in reversed(lefts) if left))
    assert lefts[-1] == ""
    for run in told.values():  # a stage that is made before its run is put together is told after its beginning as well
        assert (run[0], run[-1], set(run[1:-1])) == ("started", "small", {"stage"})
    assert max(workers.computed.values()) == 1
    assert set(workers.computed) == set(plan_study(load_study(path), tmp_path / "none").stages)
    for file in (found.folder / "results").glob("*.json"):
        assert not any(stage["reused"] for stage in json.loads(file.read_text())["stages"])
    # Models are gone, answers are there.
    assert {artifact["stage"]["kind"] for _, artifact, _ in Store(tmp_path / "w/store").entries()} == {
        "data", "poison", "trigger", "predict"
    }  # fmt: skip
    for row in load_study(path).rows[1:3]:
        alone = defensekit.run(row.recipe, tmp_path / "alone")
        assert results(found.folder)[(*row.axes.values(), 0)] == numbers(alone)
        assert (found.folder / "results" / f"{alone.identity[:16]}.json").is_file()
    again = _Counting()
    assert run_study(counted(path, again), tmp_path / "w").before == 4
    assert not again.computed
    told.clear()
    digest = next((found.folder / "results").glob("*.sha256"))
    written = digest.rename(tmp_path / "digest")

    class Meanwhile(Telling):
        def planned(self, stages: Sequence[Planned]) -> None:
            written.rename(digest)

    assert run_study(counted(path, again), tmp_path / "w", [Meanwhile()]).before == 3
    assert [*told.values()] == [["started", "small"]]  # by somebody else


def test_an_observer_that_fails_takes_no_study_down(recipe: Path, tmp_path: Path) -> None:
    heard: list[Any] = []

    class Faint(Observer):
        def study_started(self, runs: Sequence[str], slots: int) -> None:
            heard.append((list(runs), slots))

        def run_started(self, recipe: Mapping[str, Any]) -> None:
            if recipe["defense"]["scorer"]["name"] == "random":
                raise ValueError("gone")

        def run_finished(self, result: Mapping[str, Any]) -> None:
            raise ValueError("gone")

        def run_failed(self, error: str) -> None:
            raise ValueError("gone")

    path = study(recipe, matrix={"defense.scorer": ["random", "magnitude"]})
    found = run_study(load_study(path), tmp_path / "w", [Faint()])
    assert (found.done, found.failed) == (2, {})
    run_study(load_study(path), tmp_path / "w", [Faint()])
    assert heard == [(["random, seed 0", "magnitude, seed 0"], 1), ([], 1)]


def test_stages_and_runs_go_on_at_once_and_come_out_the_same(recipe: Path, tmp_path: Path) -> None:
    path = study(recipe, matrix={"defense.scorer": ["magnitude", "random"]})
    first = run_study(load_study(path), tmp_path / "one")
    workers = _Counting()
    second = run_study(counted(path, workers, 2), tmp_path / "two")
    assert workers.most == 2
    assert max(workers.computed.values()) == 1
    assert results(first.folder) == results(second.folder)


def test_what_fails_is_written_down_and_the_rest_goes_on(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "mine.py").write_text(
        "from defensekit.api import hookimpl, scorer\n"
        "@scorer()\n"
        "def mine(t):\n"
        "    '''Fails.'''\n"
        "    raise ValueError('unlucky')\n"
        "@hookimpl\n"
        "def defensekit_scorers():\n"
        "    return {'mine': mine}\n"
    )
    shape(recipe, plugins=["mine.py"])
    path = study(recipe, matrix={"defense.scorer": ["mine", "magnitude"]}, seeds=[0, 1])
    lefts: list[str] = []

    class Telling(Observer):
        def outlook(self, left: str) -> None:
            lefts.append(left)

    found = run_study(counted(path, _Counting()), tmp_path / "w", [Telling()])
    assert (found.done, len(found.failed)) == (2, 2)
    assert any(lefts)
    assert lefts[-1] == ""  # nobody waits for what hangs on a stage that failed
    assert all("mine, seed" in told and "ValueError: unlucky" in told for told in found.failed.values())
    status = status_of(found.folder)
    assert (status["done"], len(status["failed"]), status["processes"]) == (2, 2, [])
    written = [json.loads(path.read_text()) for path in (found.folder / "failed").glob("*.json")]
    assert sorted(failure["recipe"]["seed"] for failure in written) == [0, 1]
    mine = recipe.parent / "mine.py"
    mine.write_text(mine.read_text().replace("raise ValueError('unlucky')", "return t.drift.abs()"))
    mended = run_study(load_study(path), tmp_path / "w")
    assert (mended.before, mended.done, mended.failed) == (2, 4, {})


@pytest.mark.slow
def test_two_places_of_a_matrix_may_be_the_same_run(recipe: Path, tmp_path: Path) -> None:
    path = study(
        recipe, matrix={"defense.scorer": ["magnitude"]}, include=[{}], executor={"name": "local", "workers": 2}
    )
    shape(recipe, defense__scorer="magnitude")
    found = run_study(load_study(path), tmp_path / "w")
    assert (found.runs, found.done, found.failed) == (2, 2, {})
    status = status_of(found.folder)
    assert (status["runs"], status["done"]) == (2, 2)


@pytest.mark.parametrize("event", slow_but(["for_run", "run_started", "run_finished"], "run_started"))
@pytest.mark.parametrize("error", [ValueError("tired"), OSError("no room")], ids=["a mistake", "a full disk"])
def test_who_watches_and_fails_ends_no_run(recipe: Path, tmp_path: Path, event: str, error: Exception) -> None:
    class Failing(Observer):
        def for_run(self, name: str, axes: Mapping[str, Any]) -> Observer:
            return self._do("for_run") or self

        def run_started(self, recipe: Mapping[str, Any]) -> None:
            self._do("run_started")

        def run_finished(self, result: Mapping[str, Any]) -> None:
            self._do("run_finished")

        def _do(self, what: str) -> None:
            if what == event:
                raise error

    class Beside(Observer):
        def warning(self, text: str) -> None:
            warned.append(text)

        def run_finished(self, result: Mapping[str, Any]) -> None:
            finished.append(result["name"])

    warned: list[str] = []
    finished: list[str] = []
    path = study(recipe, matrix={"defense.scorer": ["magnitude", "random"]})
    found = run_study(load_study(path), tmp_path / "w", [Failing(), Beside()])
    assert (found.done, found.failed) == (2, {})
    assert len(finished) == len(warned) == 2
    assert all("the observer Failing of" in text and str(error) in text for text in warned)


@pytest.mark.slow
def test_who_watches_and_fails_leaves_no_answer_behind(recipe: Path, tmp_path: Path) -> None:
    """A worker whose progress nobody took is not asked for another stage: its next answer would be the old one's."""

    class Failing(Observer):
        def progress(self, title: str, done: int, total: int) -> None:
            if title == "purified" and not raised:
                raised.append(ValueError("tired"))
                raise raised[0]

    raised: list[ValueError] = []
    path = study(recipe, matrix={"defense.scorer": ["magnitude", "random"]}, executor={"name": "local", "workers": 1})
    found = run_study(load_study(path), tmp_path / "w", [Failing()])
    assert (found.done, len(found.failed)) == (1, 1)
    assert "tired" in next(iter(found.failed.values()))


@pytest.mark.parametrize("damage", slow_but(["half", "gone", "other", "no sum"], "no sum"))
def test_a_damaged_result_is_made_again_from_what_is_there(recipe: Path, tmp_path: Path, damage: str) -> None:
    path = study(recipe, matrix={"defense.scorer": ["magnitude"]})
    found = run_study(load_study(path), tmp_path / "w")
    [file] = (found.folder / "results").glob("*.json")
    whole = json.loads(file.read_text())
    if damage == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "other":
        file.write_text(file.read_text().replace('"value":', '"value" :', 1))
    else:
        (file if damage == "gone" else Path(f"{file.with_suffix('')}.sha256")).unlink()
    workers = _Counting()
    again = run_study(counted(path, workers), tmp_path / "w")
    assert (again.before, again.done) == (0, 1)
    assert not workers.computed
    assert numbers(json.loads(file.read_text())) == numbers(whole)


def test_resume_says_what_is_made(recipe: Path, tmp_path: Path) -> None:
    path = study(recipe)
    with pytest.raises(UsageError, match=r"resume: 'alway'\? Did you mean 'always'\? \(only-missing"):
        run_study(load_study(path), tmp_path / "w", resume=cast(Any, "alway"))
    one = load_study(path, "matrix=null")
    empty = run_study(one, tmp_path / "w", resume="only-cache")
    assert (empty.done, len(empty.failed)) == (0, 1)
    assert not (empty.folder / "failed").exists()
    assert run_study(one, tmp_path / "w").done == 1
    with pytest.raises(UsageError, match="has 1 results already, and resume is never"):
        run_study(one, tmp_path / "w", resume="never")
    [file] = (empty.folder / "results").glob("*.json")
    before = file.stat().st_mtime_ns
    assert run_study(one, tmp_path / "w", resume="only-missing").before == 1
    assert file.stat().st_mtime_ns == before
    run_study(one, tmp_path / "w", resume="always")
    assert file.stat().st_mtime_ns > before
    file.unlink()
    assert run_study(one, tmp_path / "w", resume="only-cache").done == 1


@pytest.mark.parametrize(
    ("keep", "kinds"), [("suspects", {"train", "statistics"}), ("models", {"train", "statistics", "purify"})]
)
def test_models_are_kept_where_a_study_says_so(recipe: Path, tmp_path: Path, keep: str, kinds: set[str]) -> None:
    run_study(load_study(study(recipe, keep=keep, matrix={"defense.scorer": ["magnitude"]})), tmp_path / "w")
    found = {artifact["stage"]["kind"] for _, artifact, _ in Store(tmp_path / "w/store").entries()}
    assert found & {"train", "statistics", "purify"} >= kinds - {"statistics"}
    assert "purify" not in found or keep == "models"


def test_models_of_others_stay(recipe: Path, tmp_path: Path) -> None:
    alone = defensekit.run(recipe, tmp_path / "w")
    run_study(load_study(study(recipe)), tmp_path / "w")
    assert alone.files("suspect").is_dir()
    assert alone.files("purified").is_dir()


@pytest.mark.slow
def test_models_that_others_made_anew_stay(recipe: Path, tmp_path: Path) -> None:
    """A study made and removed them before, or could not make them."""
    path = study(recipe, matrix={"defense.scorer": ["magnitude"]})
    run_study(load_study(path), tmp_path / "w", resume="only-cache")
    first = run_study(load_study(path), tmp_path / "w")
    [entry] = (first.folder / "results").glob("*.json")
    for stage in json.loads(entry.read_text())["stages"]:
        if stage["kind"] == "predict":
            Store(tmp_path / "w/store").remove(stage["key"])
    alone = defensekit.run(load_study(path).rows[0].recipe, tmp_path / "w")
    entry.unlink()
    run_study(load_study(path), tmp_path / "w")
    assert alone.files("suspect").is_dir()


def test_what_is_kept_is_as_the_study_says_now(recipe: Path, tmp_path: Path) -> None:
    path = study(recipe, matrix={"defense.scorer": ["magnitude"]})
    run_study(load_study(path), tmp_path / "w")
    path = study(recipe, matrix={"defense.scorer": ["diffusion"]}, keep="suspects")
    run_study(load_study(path), tmp_path / "w")
    kinds = Counter(artifact["stage"]["kind"] for _, artifact, _ in Store(tmp_path / "w/store").entries())
    assert (kinds["train"], kinds["purify"]) == (1, 0)


def test_a_rule_chooses_in_every_run(recipe: Path, tmp_path: Path) -> None:
    choose = {"rule": "accuracy-floor", "values": [0.25, 0.5], "max_drop": 0.5}
    path = study(shape(recipe, defense__choose=choose), matrix={"defense.scorer": ["diffusion", "magnitude"]})
    workers = _Counting()
    found = run_study(counted(path, workers), tmp_path / "w")
    assert found.done == 2, found.failed
    assert max(workers.computed.values()) == 1
    [one, other] = [json.loads(file.read_text()) for file in (found.folder / "results").glob("*.json")]
    assert one["chosen"]["value"] == other["chosen"]["value"] == 0.5
    assert [trial["value"] for trial in one["curve"]] == [0.0, 0.25, 0.5]


# -- again -------------------------------------------------------------------------------------------------------------


def test_a_row_is_run_again_from_its_file_alone(recipe: Path, tmp_path: Path) -> None:
    found = run_study(load_study(study(recipe, matrix={"defense.scorer": ["magnitude"]})), tmp_path / "w")
    [file] = (found.folder / "results").glob("*.json")
    copy = tmp_path / "row.json"
    copy.write_text(file.read_text())
    mine = tmp_path / "fresh" / f"{json.loads(copy.read_text())['name']}.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    again = rerun(copy, tmp_path / "fresh")
    assert again.same
    assert mine.read_text() == "mine"
    assert again.after.identity == again.before.identity
    forged = json.loads(copy.read_text())
    forged["models"]["purified"]["metrics"]["acc"]["value"] += 0.25
    forged["summary"]["purified"]["asr"] = 0.0
    forged |= {"asr_floor": 0.9, "clean_budget": 1, "oracle": ["oracle-floor"], "identity": "0" * 64}
    forged["stages"][0]["digest"] = "0" * 64
    copy.write_text(json.dumps(forged))
    other = rerun(copy, tmp_path / "fresh")
    assert [place for place, _, _ in other.inputs] == ["identity"]
    assert {place for place, _, _ in other.numbers} == {
        "models.purified.metrics.acc.value", "summary.purified.asr", "asr_floor", "clean_budget", "oracle",
    }  # fmt: skip
    assert [place for place, _, _ in other.stages] == [forged["stages"][0]["title"]]
    assert not other.same
    for part in ("inputs", "numbers", "stages"):  # each is enough
        assert not replace(again, **{part: getattr(other, part)}).same


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is no result's file"), ("[]", "is no result's file"), ("name: s", r"a study's are in .*/results/"),
     ('{"schema_version": 1}', "schema_version 1, expected 2"),
     ('{"schema_version": 2}', "no result: name: Field required")],
)  # fmt: skip
def test_what_is_no_result_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "row.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_result(tmp_path / "row.json")


def test_differences_name_their_place() -> None:
    assert list(differences({"a": [1, {"b": 2}], "c": 0}, {"a": [1, {"b": 3}]})) == [("a.1.b", 2, 3), ("c", 0, None)]


# -- locks -------------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from defensekit.pipeline.store import Store
with Store(Path(sys.argv[1])).lock("abc"):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_the_life_of_its_holder(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"mine\n"
    waited: list[bool] = []

    def kill() -> None:
        waited.append(True)
        holder.send_signal(signal.SIGKILL)

    with Store(tmp_path).lock("abc", kill):
        pass
    holder.wait()
    holder.stdout.close()
    assert waited == [True]


@pytest.mark.slow
def test_two_who_want_the_same_stage_make_it_once(recipe: Path, tmp_path: Path) -> None:
    """Two studies with one workspace at the same time."""
    path = study(recipe, matrix={"defense.scorer": ["magnitude"]}, keep="models")
    both = [_Counting(), _Counting()]
    threads = [threading.Thread(target=run_study, args=(counted(path, workers, 1), tmp_path / "w")) for workers in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = both[0].computed + both[1].computed
    assert set(made.values()) == {1}
    assert len(list((tmp_path / "w/studies/small/results").glob("*.json"))) == 1


# -- nothing is lost ---------------------------------------------------------------------------------------------------


def filled(path: Path, workspace: Path, runs: int) -> None:
    """Run a study on a disk that has room for rows, and for no model."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        full = CliRunner().invoke(app, ["study", "run", str(path), "-w", str(workspace), "-q"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full.exit_code == 1, full.output
    failures = [json.loads(file.read_text()) for file in (workspace / "studies/small/failed").glob("*.json")]
    assert len(failures) == runs
    assert all("File too large" in failure["error"] for failure in failures)


def disturbed(recipe: Path, tmp_path: Path, kills: int, executor: str, scorers: int = 2) -> None:
    """Fill the disk, and kill a study or its worker so many times: whenever it ends it is as an undisturbed one."""
    matrix = {"defense.scorer": ["magnitude", "random", "diffusion", "spectral", "inverse-fisher"][:scorers]}
    keys = {"name": "local", "workers": 1} if executor == "local" else executor
    path = study(recipe, executor=keys, matrix=matrix)
    expected = results(run_study(load_study(path, "executor=in-process"), tmp_path / "whole").folder)
    assert len(expected) == scorers
    command = [sys.executable, "-m", "defensekit", "study", "run", str(path), "-w", str(tmp_path / "w"), "-q"]
    rng, store, done = random.Random(0), tmp_path / "w/store/artifacts", 0

    def ends() -> None:
        last = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
        assert last.returncode == 0, last.stdout + last.stderr
        assert json.loads(last.stdout)["done"] == scorers
        assert results(tmp_path / "w/studies/small") == expected
        assert not list((tmp_path / "w/studies/small/failed").glob("*"))

    def begun() -> int:
        """How many stages were begun so far."""
        log = tmp_path / "w/studies/small/study.log"
        return log.read_text().count(": computing ") if log.exists() else 0

    if executor == "in-process":
        filled(path, tmp_path / "w", scorers)
    while done < kills:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wanted = begun() + rng.randint(0, 4)
        while process.poll() is None and begun() < wanted:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        if process.poll() is not None:
            ends()
            shutil.rmtree(tmp_path / "w")  # there was nothing left to do: begin again
            continue
        victims = [process.pid]
        if executor == "local" and rng.random() < 0.5:
            listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
            victims = [int(pid) for pid in listed.stdout.split()][:1] or victims
        os.kill(victims[0], signal.SIGKILL)
        if victims != [process.pid]:
            time.sleep(0.2)
            process.kill()
        done += process.wait() == -signal.SIGKILL  # or it was over at that moment
        if rng.random() < 0.3 and (files := sorted((tmp_path / "w/studies/small/results").glob("*.json"))):
            files[0].write_text("{")  # and a disk that loses the end of a file
        if rng.random() < 0.3 and (manifests := sorted(store.glob("*/manifest.json"))):
            manifests[0].write_text("{")
    ends()


def test_a_study_killed_and_on_a_full_disk_ends_as_an_undisturbed_one(recipe: Path, tmp_path: Path) -> None:
    disturbed(recipe, tmp_path, 2, "in-process")


@pytest.mark.slow
def test_a_study_killed_fifty_times_ends_as_an_undisturbed_one(recipe: Path, tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / str(i)).mkdir()
        disturbed(recipe, tmp_path / str(i), 10, ("in-process", "local")[i % 2], scorers=5)


def test_a_study_that_is_stopped_writes_down_no_failures(recipe: Path, tmp_path: Path) -> None:
    """Ctrl-C meets the main thread while it waits for another one's stage."""
    path = study(recipe, matrix={"defense.scorer": ["magnitude", "random"]})
    goes_on, pressed = threading.Event(), threading.Timer(3, os.kill, [os.getpid(), signal.SIGINT])

    class Blocked(Workers):
        slots = 2

        def execute(self, stage: dict[str, Any], store: Path, report: Callable[[int, int], None]) -> None:
            if threading.current_thread() is not threading.main_thread():
                pressed.start()
                goes_on.wait(60)
                raise DefenseKitError("the workers are gone")
            compute(stage, store, report)

    class Blocking(Executor):
        @contextmanager
        def open(self) -> Iterator[Workers]:
            yield Blocked()

    before = set(threading.enumerate())
    called_back = gc.callbacks.copy()
    gc.callbacks.clear()  # Ctrl-C while hypothesis is called back by a collection is swallowed there
    try:
        with pytest.raises(KeyboardInterrupt):
            run_study(replace(load_study(path), executor=Named("blocking", Blocking())), tmp_path / "w")
    finally:
        gc.callbacks.extend(called_back)
        goes_on.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert not (tmp_path / "w/studies/small/failed").exists()


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_commands_tell_what_there_is(recipe: Path, tmp_path: Path) -> None:
    path = study(recipe, matrix={"defense.scorer": ["magnitude", "random"]})

    def command(*arguments: str | Path) -> Any:
        return CliRunner().invoke(app, ["study", *map(str, arguments), "-w", str(tmp_path / "w")])

    planned = command("plan", path)
    assert planned.exit_code == 0
    assert "magnitude, seed 0" in planned.stdout
    assert "2 runs, 0 of them there, 2 to make" in planned.stdout
    assert "there is no estimate yet" in planned.stdout
    assert "no study has run in" in str(command("status", path).exception)
    whole = [sys.executable, "-m", "defensekit", "study", "run", str(path), "-w", str(tmp_path / "w")]
    done = subprocess.run(whole, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs have a result, 0 of them had one before" in done.stdout
    assert "[2/2] random, seed 0: ACC" in done.stderr
    status = command("status", path)
    assert status.stdout == "small: 2 of 2 runs have a result, 0 failed\nnobody is at work on it\n"
    assert json.loads(command("plan", path, "--json").stdout)["stages"]["to_make"] == {}
    shape(recipe, data__name="none.csv")
    gone = command("run", path).exception
    assert isinstance(gone, UsageError)
    assert "none.csv" in str(gone)
