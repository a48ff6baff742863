"""What may be written for a model, data or a component in Python means what it means in a recipe."""

from pathlib import Path
from typing import Any

import pytest

from defensekit.api import Scorer, Selector
from defensekit.cli.main import main
from defensekit.host.discovery import cached_plugins
from defensekit.pipeline.preflight import survey
from defensekit.recipe.loader import load_recipe
from defensekit.recipe.resolve import component, dataset_source, model_folder, model_source
from defensekit.studies.loading import load_study
from defensekit.utils.errors import UsageError
from defensekit.workflows.purify_model import prepare


def test_a_model_is_a_source_a_folder_or_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/model").mkdir(parents=True)
    assert model_source("minilm") == {"name": "minilm"}
    assert model_source("owner/model") == {"name": "folder", "path": "owner/model"}  # what is there comes first
    assert model_source("./none") == {"name": "folder", "path": "none"}
    assert model_source("owner/other@v1") == {"name": "hub", "id": "owner/other", "revision": "v1"}
    assert model_source({"name": "owner/other", "revision": "v1"}) == model_source("owner/other@v1")
    assert model_folder({"name": "owner/model"}) == model_folder(Path("owner/model")) == Path("owner/model")


def test_data_are_a_source_a_file_or_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    assert dataset_source("movie-reviews") == {"name": "movie-reviews"}
    assert dataset_source({"name": "rows", "text": "t"}) == {"name": "file", "path": "rows", "text": "t"}
    assert dataset_source("owner/rows.csv") == {"name": "file", "path": "owner/rows.csv"}
    assert dataset_source("owner/rows@main") == {"name": "hub", "id": "owner/rows", "revision": "main"}


def test_a_source_and_a_folder_of_one_name_are_ambiguous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pico").mkdir()
    (tmp_path / "opinions").touch()
    for spec in ("pico", {"name": "pico"}):
        with pytest.raises(UsageError, match=r"^'pico' is ambiguous: a source of plugin .*, and the folder .*\./pico"):
            model_source(spec)
    with pytest.raises(UsageError, match=r"^'opinions' is ambiguous: .*the file opinions. Write \./opinions for"):
        dataset_source("opinions")
    assert model_source("./pico") == {"name": "folder", "path": "pico"}
    assert model_folder(Path("pico")) == Path("pico")  # a path is no name
    given = {"name": "pico", "size": 2}  # parameters of the source, which a folder does not have
    assert model_source(given) == given


def test_of_a_recipe_what_lies_beside_it_counts(recipe: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = recipe.parent / "pico"
    text = recipe.read_text().replace(f"model: {base}", "model: pico")
    recipe.write_text(text)
    assert load_recipe(recipe).model.name == "pico"
    beside.mkdir()
    with pytest.raises(UsageError, match=rf"^{recipe}:2: model: 'pico' is ambiguous: .*the folder {beside}\."):
        load_recipe(recipe)
    recipe.write_text(text.replace("model: pico", "model: ./pico"))
    assert load_recipe(recipe).model.parameters()["path"] == str(beside)
    monkeypatch.chdir(recipe.parent)
    (recipe.parent / "opinions").mkdir()
    with pytest.raises(UsageError, match="'opinions' is ambiguous"):
        load_recipe(recipe, ["data.name=opinions"])  # of a setting, what lies in the working folder


@pytest.mark.parametrize(
    ("read", "spec", "text"),
    [
        (model_source, "minilmm", "'minilmm' is no model source, no folder and no hub id with a revision"),
        (model_source, "owner/model", "'owner/model' needs a revision: write owner/model@main"),
        (dataset_source, "owner/rows", "'owner/rows' needs a revision: write owner/rows@main"),
        (model_source, {"name": "./m", "path": "n"}, "path: is already given by `name: ./m`"),
        (
            dataset_source,
            {"name": "owner/rows@a", "revision": "b"},
            "revision: is already given by `name: owner/rows@a`",
        ),
    ],
)
def test_what_is_none_of_these_is_said(read: Any, spec: Any, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(spec)
    assert str(caught.value).startswith(text)


def test_paths_among_parameters_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", str(tmp_path))
    (tmp_path / "a").mkdir()
    assert model_folder({"name": "folder", "path": "$MODELS/a"}) == tmp_path / "a"
    (tmp_path / "a$b").mkdir()
    assert model_folder("$MODELS/a$$b") == tmp_path / "a$b"


def test_an_object_of_another_kind_is_refused() -> None:
    magnitude = component(Scorer, "magnitude")
    assert component(Scorer, magnitude) is magnitude
    with pytest.raises(UsageError, match="expected a selector, got the scorer Magnitude"):
        component(Selector, magnitude)  # type: ignore[type-var]


def test_plugins_are_loaded_once_for_the_same_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "empty.py"
    path.write_text("")
    assert cached_plugins() is cached_plugins()
    before = cached_plugins([path])
    assert cached_plugins([path]) is before
    path.write_text("x = 1")
    assert cached_plugins([path]) is not before
    everything = cached_plugins()
    monkeypatch.setenv("DEFENSEKIT_PLUGINS", "")
    assert cached_plugins() is not everything


@pytest.mark.parametrize("settings", [["model=$SECRET/model"], ["plugins=[$SECRET/own.py]"]])
def test_a_missing_path_is_told_as_typed(recipe: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "/hidden/value")
    with pytest.raises(UsageError, match=r"there is nothing at .*SECRET") as caught:
        load_recipe(recipe, settings)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        ["data.name=$SECRET/rows.csv"],
        ["data={name: file, path: $SECRET/rows.csv, train: 8, clean: 8, dev: 8, test: 8}"],
        ["attack=null", "training=null", "data.train=null", "suspect=$SECRET/suspect"],
        [
            "attack=null",
            "training=null",
            "data.train=null",
            "suspect=$SUSPECT",
            "triggered={path: $SECRET/rows.csv, target: 1}",
        ],
        ["attack={name: paraphrase-rows, rewritten: $SECRET/rows.csv, target: positive, rate: 0.2}"],
    ],
)
def test_so_is_one_that_is_looked_at_before_a_run(
    recipe: Path, suspect: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "/hidden/value")
    monkeypatch.setenv("SUSPECT", str(suspect))
    with pytest.raises(UsageError, match=r"(no|holds|nothing).*\$SECRET/") as caught:
        survey(load_recipe(recipe, settings), print)
    assert "hidden" not in str(caught.value)


def test_so_is_one_that_a_file_names(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "/hidden/value")
    study = recipe.with_name("study.yaml")
    study.write_text("name: s\nrecipe: $SECRET/a.yaml\nseeds: [0]\n")
    recipe.write_text("extends: $SECRET/a.yaml\n")
    for load in (lambda: load_recipe(recipe), lambda: load_study(study)):
        with pytest.raises(UsageError, match=r"there is nothing at .SECRET/a.yaml") as caught:
            load()
        assert "hidden" not in str(caught.value)


def test_variables_mean_the_same_in_every_path_of_a_command(
    recipe: Path, base: Path, suspect: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS", str(suspect.parent))
    monkeypatch.setenv("BASES", str(base.parent))
    monkeypatch.setenv("ROWS", str(recipe.parent))
    named = f"$MODELS/{suspect.name}", f"$BASES/{base.name}", "$ROWS/rows.csv"
    planned = prepare(named[1], Path(named[0]), recipe.with_name("out"), named[2]).recipe
    assert planned.suspect
    assert planned.suspect.parameters()["path"] == str(suspect)
    assert planned.data.component.parameters()["path"] == str(recipe.with_name("rows.csv"))
    for out in ("inside", "."):
        with pytest.raises(UsageError, match="lies in the suspect"):
            prepare(named[1], Path(named[0]), suspect / out, named[2])
    monkeypatch.setattr("sys.argv", ["defensekit", "scan", "--base", "x", "--suspect", named[0], "--out", str(suspect)])
    with pytest.raises(SystemExit, match="2"):
        main()
