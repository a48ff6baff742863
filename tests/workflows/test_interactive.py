"""The pieces by hand: the same numbers as a run, and objects that show themselves."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import defensekit as dk
from defensekit.api import Scorer
from defensekit.utils.errors import UsageError
from defensekit.utils.seeds import Seeds
from tests.conftest import RECIPE, make_sentences, write_table


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dk.Result:
    folder = tmp_path_factory.mktemp("byhand")
    write_table(folder / "rows.csv", make_sentences(400))
    (folder / "pico.yaml").write_text(RECIPE.format(base=base))
    short = ["defense.choose=", "training.epochs=1", "data.train=48"]
    recipe = dk.load_recipe(folder / "pico.yaml", [*short, "seed=3"])
    return dk.run(recipe, folder / "workspace")


def test_by_hand_is_what_a_run_does_to_the_bit(finished: dk.Result, base: Path, tmp_path: Path) -> None:
    pair = dk.load_pair(base, finished.files("suspect"))
    rows = Path(finished.folder).parents[2] / "rows.csv"
    data = dk.load_data(rows, pair=pair, clean=32, dev=32, test=60, seed=3)
    assert data.test == finished.rows("test rows")
    assert data.clean == finished.rows("clean rows")
    curvature = dk.estimate(pair, "fisher", data.clean, max_length=32, seed=3)
    stored = load_file(finished.files("statistics (fisher)") / "curvature.safetensors")
    assert all(torch.equal(stored[name], values) for name, values in curvature.tensors["curvature"].items())
    scores = dk.score(pair, "diffusion", curvature, seed=3)
    selection = dk.select(scores, {"name": "fraction", "fraction": 0.5})
    reset = finished.models["purified"].reset
    assert reset is not None
    assert selection.facts["selected"] == reset.selected
    assert selection.histogram() == reset.scores
    steps = ["reset", {"name": "fine-tune", "epochs": 2, "learning_rate": 3e-3, "batch_size": 8}]
    folder = dk.purify(pair, selection, steps, data.clean, tmp_path / "p", max_length=32, seed=3)
    mine, theirs = load_file(folder / "model.safetensors"), load_file(finished.files("purified") / "model.safetensors")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    found = dk.evaluate(folder, data.test, max_length=32)
    assert found.metrics["acc"] == finished.models["purified"].metrics["acc"]
    triggered = finished.rows("triggered rows")
    asr = dk.evaluate(pair.suspect, triggered, ["asr"], target="positive", max_length=32).metrics["asr"]
    assert asr == finished.models["suspect"].metrics["asr"]
    both = dk.evaluate(pair.suspect, triggered, "excess-asr", target="positive", plain=data.test, max_length=32, seed=3)
    assert both.metrics["excess-asr"] == finished.models["suspect"].metrics["excess-asr"]


def test_a_step_searches_as_in_a_run(
    finished: dk.Result, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*arguments: Any, seed: int, **how: Any) -> None:
        raise UsageError(f"searched with {seed}")

    monkeypatch.setattr("defensekit.defense.purification.search_beside", search)
    pair, rows = dk.load_pair(base, finished.files("suspect")), finished.rows("clean rows")
    with pytest.raises(UsageError, match=f"searched with {Seeds(3).search}"):
        dk.purify(pair, None, "unlearn-triggers", rows, tmp_path / "p", seed=3)


def test_everything_shows_itself_in_a_notebook(finished: dk.Result, base: Path, tmp_path: Path) -> None:
    pair = dk.load_pair(base, finished.files("suspect"))
    data = dk.load_data(Path(finished.folder).parents[2] / "rows.csv", pair=pair, clean=16, test=20)
    curvature = dk.estimate(pair, "fisher", data.clean)
    scores = dk.score(pair, "magnitude")
    selection = dk.select(scores, {"name": "fraction", "fraction": 0.5})
    for shown, part in (
        (pair, "tensors in scope"),
        (data, "positive"),
        (curvature, "effective_rows"),
        (scores, "<img"),
        (selection, "50.0% of the eligible"),
        (dk.evaluate(pair.suspect, data.test), "ACC"),
        (finished, "purified"),
        (dk.plot(selection), "data:image/svg+xml"),
    ):
        assert part in shown._repr_html_()
        assert len(repr(shown)) < 1200
    dk.plot(scores).save(tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing was chosen"):
        dk.plot(finished)


def test_labels_are_no_markup_in_a_notebook(finished: dk.Result) -> None:
    changed = finished.model_copy(update={"name": "<b>bold</b>"})
    assert "<b>bold" not in changed._repr_html_()


class Mine(Scorer):
    """A scorer of a notebook's own."""

    def score(self, t: Any) -> Any:
        return t.drift.abs()


def test_an_object_of_ones_own_is_a_component_too(finished: dk.Result, base: Path) -> None:
    pair = dk.load_pair(base, finished.files("suspect"))
    assert dk.score(pair, Mine()).scorer == "Mine"


def test_mistakes_say_what_was_expected(finished: dk.Result, base: Path, tmp_path: Path) -> None:
    pair = dk.load_pair(base, finished.files("suspect"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    wrong = {
        "is no model source, no folder": lambda: dk.load_pair("nowhere", base),
        "Did you mean 'minilm'": lambda: dk.load_pair("minilmm", base),
        "needs curvature: estimate it first": lambda: dk.score(pair, "diffusion"),
        "there is no scorer 'difusion'. Did you mean 'diffusion'": lambda: dk.score(pair, "difusion"),
        "scorer.spectral.rank: ": lambda: dk.score(pair, {"name": "spectral", "rank": 0}),
        "scorer.spectral.rnk: unknown key. Did you mean 'rank'": lambda: dk.score(pair, {"name": "spectral", "rnk": 1}),
        "expected a name": lambda: dk.score(pair, {"rank": 1}),
        "`target=`, the attacker's label": lambda: dk.evaluate(pair.suspect, finished.rows("triggered rows"), "asr"),
        "`plain=`, rows without": lambda: dk.evaluate(pair.suspect, finished.rows("test rows"), "excess-asr", target=1),
        "no rows to train on": lambda: dk.purify(pair, None, ["fine-tune"], [], tmp_path / "none"),
        "there are no rows": lambda: dk.estimate(pair, "fisher", []),
        "clean=-1: expected a number of rows": lambda: dk.load_data("movie-reviews", clean=-1),
        "a dataset: expected a name, or a mapping with `name:`": lambda: dk.load_data({"text": "a"}),
        "--set seed: expected path=value": lambda: dk.load_recipe(Path(finished.folder) / "recipe.yaml", "seed"),
        "expected a result, scores or a selection": lambda: dk.plot(pair),  # type: ignore[arg-type]
        "already exists": lambda: dk.purify(pair, None, ["reset"], [], tmp_path / "full"),
        "there is no file": lambda: dk.load_data(tmp_path / "none.csv"),
        "there is no stage 'suspct'. Did you mean 'suspect'": lambda: finished.files("suspct"),
    }
    for message, call in wrong.items():
        with pytest.raises(UsageError) as caught:
            call()
        assert message in str(caught.value)
    assert (tmp_path / "full/file").read_text() == "mine"


def test_a_selection_belongs_to_its_pair(finished: dk.Result, base: Path, tmp_path: Path) -> None:
    pair = dk.load_pair(base, finished.files("suspect"))
    selection = dk.select(dk.score(pair, "magnitude"), {"name": "fraction", "fraction": 0.5})
    other = dk.load_pair(base, finished.files("clean reference"))
    with pytest.raises(UsageError, match="the selection is of"):
        dk.purify(other, selection, "reset", [], tmp_path / "p")
    assert dk.purify(pair, selection, "reset", [], tmp_path / "p").is_dir()  # one step needs no list


def test_a_run_again_knows_the_stages_of_the_first(finished: dk.Result) -> None:
    folder = Path(finished.folder)
    again = dk.run(folder / "recipe.yaml", folder.parents[1])
    assert again.files("suspect") == finished.files("suspect")
    assert [stage.key for stage in again.stages] == [stage.key for stage in finished.stages]
    assert [stage.seconds for stage in again.stages] == [stage.seconds for stage in finished.stages]
    assert all(stage.reused for stage in again.stages)


def test_a_pruned_stage_says_so(finished: dk.Result, tmp_path: Path) -> None:
    elsewhere = finished.model_copy(update={"folder": str(tmp_path / "runs/x")})
    with pytest.raises(UsageError, match="run the recipe again"):
        elsewhere.files("suspect")


def test_the_door_is_light_and_whole() -> None:
    code = (
        "import sys, defensekit as dk\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'matplotlib', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert all(callable(getattr(dk, name)) for name in dir(dk))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # A submodule of the same name would take a name's place as soon as somebody imports it.
    submodules = {path.stem for path in Path(dk.__file__).parent.glob("*.py")}
    assert not submodules & set(dir(dk))
    with pytest.raises(AttributeError):
        dk.nothing_like_it  # noqa: B018
