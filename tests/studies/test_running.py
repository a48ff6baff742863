"""Studies: a matrix of runs, every stage once, nothing lost."""

import json
import os
import re
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

import defensekit
from defensekit.components import Observer, Planned
from defensekit.pipeline.store import Store
from defensekit.studies.folder import Folder
from defensekit.studies.loading import load_study
from defensekit.studies.planning import plan_study
from defensekit.studies.running import run_study
from defensekit.studies.status import status_of
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.conftest import shape, slow_but
from tests.studies.helpers import _Counting, counted, numbers, results, study


def test_every_stage_is_made_once_and_numbers_are_those_of_single_runs(recipe: Path, tmp_path: Path) -> None:
    path, workers = study(shape(recipe, defense__compare={})), _Counting()
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

        def time_left(self, left: str) -> None:
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
    row = load_study(path).runs[2]
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


def test_an_observer_that_fails_takes_no_study_down(lean: Path, warm: Path) -> None:
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

    path = study(lean, matrix={"defense.scorer": ["random", "magnitude"]})
    found = run_study(load_study(path), warm, [Faint()])
    assert (found.done, found.failed) == (2, {})
    run_study(load_study(path), warm, [Faint()])
    assert heard == [(["random, seed 0", "magnitude, seed 0"], 1), ([], 1)]


@pytest.mark.slow
def test_stages_and_runs_go_on_at_once_and_come_out_the_same(recipe: Path, tmp_path: Path) -> None:
    path = study(recipe, matrix={"defense.scorer": ["magnitude", "random"]})
    first = run_study(load_study(path), tmp_path / "one")
    workers = _Counting()
    second = run_study(counted(path, workers, 2), tmp_path / "two")
    assert workers.most == 2
    assert max(workers.computed.values()) == 1
    assert results(first.folder) == results(second.folder)


def test_what_fails_is_written_down_and_the_rest_goes_on(lean: Path, warm: Path) -> None:
    (lean.parent / "mine.py").write_text(
        "from defensekit.api import hookimpl, scorer\n"
        "@scorer()\n"
        "def mine(t):\n"
        "    '''Fails.'''\n"
        "    raise ValueError('unlucky')\n"
        "@hookimpl\n"
        "def defensekit_scorers():\n"
        "    return {'mine': mine}\n"
    )
    shape(lean, plugins=["mine.py"])
    path = study(lean, matrix={"defense.scorer": ["mine", "magnitude"]}, seeds=[0, 1])
    lefts: list[str] = []

    class Telling(Observer):
        def time_left(self, left: str) -> None:
            lefts.append(left)

    found = run_study(counted(path, _Counting()), warm, [Telling()])
    assert (found.done, len(found.failed)) == (2, 2)
    assert any(lefts)
    assert lefts[-1] == ""  # nobody waits for what hangs on a stage that failed
    assert all("mine, seed" in told and "ValueError: unlucky" in told for told in found.failed.values())
    status = status_of(found.folder)
    assert (status["done"], len(status["failed"]), status["processes"]) == (2, 2, [])
    written = [json.loads(path.read_text()) for path in (found.folder / "failed").glob("*.json")]
    assert sorted(failure["recipe"]["seed"] for failure in written) == [0, 1]
    mine = lean.parent / "mine.py"
    mine.write_text(mine.read_text().replace("raise ValueError('unlucky')", "return t.drift.abs()"))
    mended = run_study(load_study(path), warm)
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
def test_who_watches_and_fails_ends_no_run(lean: Path, warm: Path, event: str, error: Exception) -> None:
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
    path = study(lean, matrix={"defense.scorer": ["magnitude", "random"]})
    found = run_study(load_study(path), warm, [Failing(), Beside()])
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
def test_a_damaged_result_is_made_again_from_what_is_there(lean: Path, warm: Path, damage: str) -> None:
    path = study(lean, matrix={"defense.scorer": ["magnitude"]})
    found = run_study(load_study(path), warm)
    [file] = (found.folder / "results").glob("*.json")
    whole = json.loads(file.read_text())
    if damage == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "other":
        file.write_text(file.read_text().replace('"value":', '"value" :', 1))
    else:
        (file if damage == "gone" else Path(f"{file.with_suffix('')}.sha256")).unlink()
    workers = _Counting()
    again = run_study(counted(path, workers), warm)
    assert (again.before, again.done) == (0, 1)
    assert not workers.computed
    assert numbers(json.loads(file.read_text())) == numbers(whole)


def test_resume_says_what_is_made(lean: Path, warm: Path) -> None:
    path = study(lean)
    with pytest.raises(UsageError, match=r"resume: 'alway'\? Did you mean 'always'\? \(only-missing"):
        run_study(load_study(path), warm, resume=cast(Any, "alway"))
    one = load_study(path, "matrix=null")
    empty = run_study(one, warm, resume="only-cache")
    assert (empty.done, len(empty.failed)) == (0, 1)
    assert not (empty.folder / "failed").exists()
    assert run_study(one, warm).done == 1
    with pytest.raises(UsageError, match="has 1 results already, and resume is never"):
        run_study(one, warm, resume="never")
    [file] = (empty.folder / "results").glob("*.json")
    before = file.stat().st_mtime_ns
    assert run_study(one, warm, resume="only-missing").before == 1
    assert file.stat().st_mtime_ns == before
    run_study(one, warm, resume="always")
    assert file.stat().st_mtime_ns > before
    file.unlink()
    assert run_study(one, warm, resume="only-cache").done == 1


@pytest.mark.parametrize(
    ("keep", "kinds"), [("suspects", {"train", "statistics"}), ("models", {"train", "statistics", "purify"})]
)
def test_models_are_kept_where_a_study_says_so(lean: Path, tmp_path: Path, keep: str, kinds: set[str]) -> None:
    run_study(load_study(study(lean, keep=keep, matrix={"defense.scorer": ["magnitude"]})), tmp_path / "w")
    found = {artifact["stage"]["kind"] for _, artifact, _ in Store(tmp_path / "w/store").entries()}
    assert found & {"train", "statistics", "purify"} >= kinds - {"statistics"}
    assert "purify" not in found or keep == "models"


def test_models_of_others_stay(lean: Path, tmp_path: Path) -> None:
    alone = defensekit.run(lean, tmp_path / "w")
    run_study(load_study(study(lean, matrix={"defense.scorer": ["diffusion", "magnitude"]})), tmp_path / "w")
    assert alone.files("suspect").is_dir()
    assert alone.files("purified").is_dir()


def test_results_say_what_removed_models_took(lean: Path, tmp_path: Path) -> None:
    """Also those of a later run, that needs their answers alone."""
    first = run_study(load_study(study(lean, matrix={"defense.scorer": ["magnitude"]})), tmp_path / "w")
    again = run_study(load_study(study(lean, matrix={"defense.scorer": ["magnitude"]}, name="again")), tmp_path / "w")
    took = []
    for outcome in (first, again):
        [entry] = (outcome.folder / "results").glob("*.json")
        took.append({stage["title"]: stage["seconds"] for stage in json.loads(entry.read_text())["stages"]})
    assert not [
        artifact for _, artifact, _ in Store(tmp_path / "w/store").entries() if artifact["stage"]["kind"] == "purify"
    ]
    assert took[0] == took[1]
    assert all(took[0].values())


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
    alone = defensekit.run(load_study(path).runs[0].recipe, tmp_path / "w")
    entry.unlink()
    run_study(load_study(path), tmp_path / "w")
    assert alone.files("suspect").is_dir()


def test_what_is_kept_is_as_the_study_says_now(lean: Path, tmp_path: Path) -> None:
    path = study(lean, matrix={"defense.scorer": ["magnitude"]})
    run_study(load_study(path), tmp_path / "w")
    path = study(lean, matrix={"defense.scorer": ["diffusion"]}, keep="suspects")
    run_study(load_study(path), tmp_path / "w")
    kinds = Counter(artifact["stage"]["kind"] for _, artifact, _ in Store(tmp_path / "w/store").entries())
    assert (kinds["train"], kinds["purify"]) == (1, 0)


def test_a_rule_chooses_in_every_run(lean: Path, warm: Path) -> None:
    choose = {"rule": "accuracy-floor", "values": [0.25, 0.5], "max_drop": 0.5}
    path = study(shape(lean, defense__choose=choose), matrix={"defense.scorer": ["diffusion", "magnitude"]})
    workers = _Counting()
    found = run_study(counted(path, workers), warm)
    assert found.done == 2, found.failed
    assert max(workers.computed.values()) == 1
    [one, other] = [json.loads(file.read_text()) for file in (found.folder / "results").glob("*.json")]
    assert one["chosen"]["value"] == other["chosen"]["value"] == 0.5
    assert [trial["value"] for trial in one["curve"]] == [0.0, 0.25, 0.5]


def test_what_fails_again_is_not_done(lean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its result of before stays, and is no result of this time."""
    one = load_study(study(lean), "matrix=null")
    assert run_study(one, tmp_path / "w").done == 1

    def refuse(self: Any, *args: Any) -> Any:
        raise DefenseKitError("no")

    monkeypatch.setattr("defensekit.studies.running.Run.result", refuse)
    again = run_study(one, tmp_path / "w", resume="always")
    assert (again.runs, again.done, len(again.failed)) == (1, 0, 1)
    told = status_of(again.folder)
    assert (told["done"], len(told["failed"])) == (0, 1)
    monkeypatch.undo()
    assert run_study(one, tmp_path / "w", resume="always").done == 1
    assert status_of(again.folder)["failed"] == []


def test_models_that_another_process_is_at_work_with_stay(lean: Path, tmp_path: Path) -> None:
    """Two processes have a seed each: the first that ends leaves the other's suspect where it is."""
    path, store = study(lean, matrix={"defense.scorer": ["magnitude"]}), Store(tmp_path / "w/store")
    first = run_study(load_study(path), tmp_path / "w")
    folder = Folder.at(first.folder)
    suspect = defensekit.run(load_study(path, "seeds=[1]").runs[0].recipe, tmp_path / "w").files("suspect").parent.name
    folder.record_models([suspect])  # as the other process wrote it down
    status = first.folder / "status" / "other.json"
    facts = {"host": socket.gethostname(), "pid": os.getppid(), "updated": time.time(), "stages": {}, "left": ""}
    status.write_text(json.dumps(facts))
    run_study(load_study(path), tmp_path / "w")
    assert store.has(suspect)
    status.unlink()
    run_study(load_study(path), tmp_path / "w")
    assert not store.has(suspect)
