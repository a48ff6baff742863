"""Tracks are frozen: what ships does not change by a byte, and nothing that a track says is left to chance."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from defensekit.leaderboard.answers import needs_more
from defensekit.leaderboard.composition import study_for
from defensekit.leaderboard.freezing import HEADING, check_frozen, freeze
from defensekit.leaderboard.identity import disagreements, parts_of
from defensekit.leaderboard.tracks import Track, load_track, names
from defensekit.pipeline.identity import identified, parts
from defensekit.pipeline.preflight import survey
from defensekit.recipe import shipped
from defensekit.recipe.loader import load_recipe
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.conftest import ROOT
from tests.leaderboard.helpers import TRACK

# The digest of every published track. A change of one is another track: give it another version.
DRAFTS = {"ag-minilm-v1"}  # nobody made rows of it yet
PUBLISHED = {
    "pico-v1": "cc65fc830c2197e26488e295b43a2a6d05c68299271486f3b38f2ebaecf18333",
    "sst2-minilm-v1": "9dc5657fd0834ceaf30c52bdad5ef09e785b19f4118f892c625cd389d3a1aab7",
}


def test_a_published_track_does_not_change_by_a_byte() -> None:
    assert {name: load_track(name).digest for name in names() if name not in DRAFTS} == PUBLISHED


@pytest.mark.parametrize("name", [*PUBLISHED, *sorted(DRAFTS)])
def test_a_published_track_leaves_nothing_of_its_suspects_to_defaults(name: str, monkeypatch: Any) -> None:
    """A default that changes would change the suspects, and nobody would see it."""
    monkeypatch.setenv("DEFENSEKIT_TEST_DATA", "/nowhere")
    track = load_track(name)
    for run in study_for(track, None).runs:
        resolved, keys = run.recipe.resolved(), track.keys
        attack = {**keys.attacks, **keys.biases, "unpoisoned": keys.unpoisoned}[run.axes["attack"]]  # type: ignore[index]
        assert attack.keys() == resolved["attack"].keys()
        assert keys.recipe["training"] == resolved["training"]
        assert keys.recipe["data"].keys() >= resolved["data"].keys()


def test_pico_is_what_is_here(tmp_path: Path) -> None:
    track = load_track("pico-v1")
    check_frozen(track, track.cells[:1], tmp_path)


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny-v1.yaml"
    path.write_text(yaml.safe_dump({**TRACK, **changes}, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "tiny"}, "name: string should match pattern"),
        ({"attacks": {}}, "attacks: dictionary should have at least 1 item"),
        ({"attacks": {"unpoisoned": {"name": "word"}}}, "attacks.unpoisoned: is the name of another attack"),
        ({"biases": {"unpoisoned": {"name": "bias-word"}}}, "biases.unpoisoned: is the name of another attack"),
        ({"biases": {"word": {"name": "bias-word"}}}, "biases.word: is the name of another attack"),
        ({"seeds": [1, 1]}, "seeds: 1 is duplicated"),
        ({"recipe": {"seed": 1}}, "recipe: has neither `defense:`"),
        ({"recipe": {"metrics": ["acc", {"name": "asr"}]}}, "recipe: its `metrics:` lack 'excess-asr'"),
        (
            {"budget": {"labelled": 2, "minute": 1}},
            "budget.minute: unknown key. Did you mean 'minutes'. .known: labelled",
        ),
        (
            {"digests": {"model": None, "data": "0" * 64, "rows": {"word": []}, "labels": {"word": []}}},
            "digests.rows: expected 1 of each of word, unpoisoned",
        ),
    ],
)
def test_a_wrong_key(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_track(str(write(tmp_path, **changes)))


def test_there_is_no_such_track() -> None:
    with pytest.raises(UsageError, match=r"no track 'pico-v2'. Did you mean 'pico-v1'"):
        load_track("pico-v2")


def test_no_such_cell(track: Track) -> None:
    assert track.cell("word:3") == ("word", 3)
    with pytest.raises(UsageError, match=r"no cell 'word:4'. Did you mean 'word:3'"):
        track.cell("word:4")


def test_a_track_that_is_not_frozen_runs_nothing(tmp_path: Path) -> None:
    track = load_track(str(write(tmp_path)))
    with pytest.raises(UsageError, match="not frozen yet: `defensekit leaderboard freeze`"):
        check_frozen(track, track.cells, tmp_path / "w")


def test_freezing_twice_is_freezing_once(track: Track, place: Path) -> None:
    path = Path(track.document.name)
    before = path.read_bytes()
    freeze(track, place / "workspace")
    assert path.read_bytes() == before
    assert before.decode().count(HEADING) == 1


def test_a_metric_that_reads_more_than_answers_is_refused(track: Track, tmp_path: Path) -> None:
    given = yaml.safe_load(Path(track.document.name).read_text())
    given["recipe"] |= {"metrics": ["acc", "ece", "asr", "excess-asr"]}
    path = write(tmp_path, **given)
    with pytest.raises(UsageError, match=r"tiny-v1.yaml:\d+: metrics.1: ece reads more than answers"):
        freeze(load_track(str(path)), tmp_path / "w")


@pytest.mark.parametrize("name", ["pico-v1", "sst2-minilm-v1", "ag-minilm-v1"])
def test_a_row_has_what_the_metrics_of_shipped_tracks_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFENSEKIT_TEST_DATA", "/nowhere")
    for run in study_for(load_track(name), None).runs:
        assert not any(needs_more(metric.component) for metric in run.recipe.metrics)


@pytest.mark.parametrize("what", ["model", "data", "rows", "labels"])
def test_rows_of_another_version_are_refused_before_anything_is_trained(
    what: str, track: Track, place: Path, tmp_path: Path
) -> None:
    data = json.loads(json.dumps(track.document.data))
    if what in ("rows", "labels"):
        data["digests"][what]["word"][0] = "0" * 64
    else:
        data["digests"][what] = "0" * 64
    data["recipe"]["data"]["path"] = str(place / "rows.csv")
    (tmp_path / "tiny-v1.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    changed = load_track(str(tmp_path / "tiny-v1.yaml"))
    message = "another version" if what in ("rows", "labels") else f"the {what} of tiny-v1 is another one here"
    with pytest.raises(DefenseKitError, match=message):
        check_frozen(changed, changed.cells, place / "workspace")


def test_the_study_of_a_track(track: Track, place: Path, tmp_path: Path) -> None:
    recipe = {**track.keys.recipe, "data": {**track.keys.recipe["data"], "path": str(place / "rows.csv")}}
    biases = {"bias": {"name": "bias-word", "word": "overall", "label": "positive", "strength": 0.5}}
    biased = load_track(str(write(tmp_path, biases=biases, recipe=recipe, seeds=[3, 5])))
    runs = study_for(biased, None).runs
    assert [(run.axes["attack"], run.recipe.seed) for run in runs] == biased.cells
    assert len(biased.cells) == 6
    metrics = {run.axes["attack"]: [metric.name for metric in run.recipe.metrics] for run in runs}
    assert metrics["word"] == metrics["unpoisoned"] == ["acc", "asr", "excess-asr", "pacc"]
    assert metrics["bias"] == ["acc", "bacc"]
    [one] = study_for(biased, None, [("bias", 5)], "{name: local, workers: 1, threads: 1}").runs
    assert (one.axes, one.recipe.executor.name) == ({"attack": "bias"}, "local")


GIVEN = ("purify", "purify-llm", "fine-purifying", "onion", "wag")  # they need a model of somebody's


@pytest.mark.parametrize("name", [name for name in shipped.names() if name not in GIVEN])
def test_plain_data_have_the_parts_that_a_recipe_has(name: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("DEFENSEKIT_TEST_DATA", "/nowhere")
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", "defense.compare={}")
    plain = dict(parts_of(recipe.resolved()))
    # A row compares with nothing; what a recipe compares with itself is another row's.
    own = {key: named for key, named in parts(recipe) if not key.startswith("defense.compare.")}
    assert plain.keys() == own.keys()
    for key, named in own.items():
        assert {**named.parameters()}.items() <= {**plain[key]}.items()


@pytest.mark.parametrize(
    "setting", ["seed=1", "data.clean=17", "training.epochs=2", "defense.refit=false", "precision=bfloat16"]
)
def test_an_identity_is_that_of_its_recipe_alone(setting: str, recipe: Path) -> None:
    loaded = load_recipe(recipe, "defense.compare={}")
    facts = identified(survey(loaded, lambda text: None))
    assert list(disagreements(loaded.resolved(), facts)) == []
    assert list(disagreements(load_recipe(recipe, ["defense.compare={}", setting]).resolved(), facts)) != []
