"""Whole runs with an input-level defense."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import defensekit
from defensekit.cli.main import app
from defensekit.components import Observer
from defensekit.pipeline.dry_run import preview
from defensekit.pipeline.run import run_attack
from defensekit.recipe import shipped
from defensekit.recipe.loader import load_recipe
from defensekit.result.narrative import story
from defensekit.result.page import render
from defensekit.result.schema import Result
from defensekit.studies.frame import Finished
from defensekit.studies.loading import load_study
from defensekit.studies.report.comparing import Comparison
from defensekit.studies.report.pivot import pivot
from defensekit.studies.running import run_study
from defensekit.utils.errors import UsageError
from defensekit.workflows.purify import purify_into
from tests.conftest import RECIPE, make_sentences, write_table
from tests.small_models import make_base

INPUT = """\
  stage: input
  sanitizer: {{name: onion, model: {reader}}}
  choose: {{rule: accuracy-floor, over: sanitizer.threshold, values: [2, 12, 1000], max_drop: 0.15}}
"""


def write(folder: Path, base: Path, reader: Path, defense: str = INPUT) -> Path:
    write_table(folder / "rows.csv", make_sentences(400))
    head = RECIPE.format(base=base).partition("defense:\n")[0]
    (folder / "pico.yaml").write_text(head + "defense:\n" + defense.format(reader=reader))
    return folder / "pico.yaml"


class Watching(Observer):
    """Remembers what was computed."""

    def stage_started(self, title: str) -> None:
        COMPUTED.append(title)


COMPUTED: list[str] = []


@pytest.fixture(scope="module")
def finished(
    finished: tuple[Path, Path, Result], tmp_path_factory: pytest.TempPathFactory, base: Path, reader: Path
) -> tuple[Path, Path, Result]:
    """The tiny recipe with another defense: the models that it is tried on are there."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = write(folder, base, reader)
    shutil.copytree(finished[1] / "store", folder / "w/store")
    planned = preview(recipe, folder / "w")
    COMPUTED.clear()
    result = defensekit.run(recipe, folder / "w", [Watching()])
    assert {stage.title for stage in planned if not stage.cached} >= {*COMPUTED}
    assert not {"poisoned rows", "suspect", "clean reference"} & {*COMPUTED}
    return recipe, folder / "w", result


def test_the_trigger_is_taken_out_before_the_suspect_reads_it(finished: tuple[Path, Path, Result]) -> None:
    _, _, result = finished
    assert list(result.summary) == ["clean", "suspect", "from-base", "sanitized"]
    before, after = result.summary["suspect"], result.summary["sanitized"]
    assert before["asr"] > 0.9  # type: ignore[operator]
    assert after["asr"] <= result.floors["asr"] + 0.2  # type: ignore[operator]
    assert after["acc"] >= before["acc"] - 0.15  # type: ignore[operator]
    assert result.chosen
    assert result.chosen.lower_does_more
    assert [trial.value for trial in result.curve] == [0, 2, 12, 1000]
    passing = [t.value for t in result.curve if t.dev_accuracy >= result.chosen.suspect_dev_accuracy - 0.15 - 1e-9]
    assert result.chosen.value == min(passing) < 1000
    assert result.curve[0].dev_accuracy < result.chosen.suspect_dev_accuracy - 0.15  # 0 takes too much
    assert result.clean_budget == 32  # dev rows alone
    rows = result.models["sanitized"].sanitized
    assert rows
    assert rows["triggered"].changed > 0.8 * rows["triggered"].rows
    assert rows["plain"].words_left > 0.7 * rows["plain"].words  # on a task of ten telling words these are rare
    assert result.models["sanitized"].reset is None
    assert result.models["sanitized"].seconds > 0  # type: ignore[operator]
    # The suspect is as it was: no model was made.
    assert {stage.kind for stage in result.stages} == {
        "data", "poison", "trigger", "train", "inspect", "sanitize", "predict",
    }  # fmt: skip
    assert {path.name for path in Path(result.folder).iterdir()} == {"recipe.yaml", "result.json", "run.log"}
    assert load_recipe(Path(result.folder) / "recipe.yaml").resolved() == result.recipe
    assert sum("cf" in (example.sanitized or "").split() for example in result.examples) <= 2
    assert set(result.examples[0].answers) == {"suspect", "sanitized"}


def test_every_threshold_reads_once_and_a_second_run_nothing(finished: tuple[Path, Path, Result]) -> None:
    recipe, workspace, result = finished
    assert [title for title in COMPUTED if title.startswith("onion on ")] == [
        "onion on dev rows", "onion on test rows", "onion on triggered rows",
    ]  # fmt: skip
    COMPUTED.clear()
    assert defensekit.run(recipe, workspace, [Watching()]).summary == result.summary
    assert COMPUTED == []
    defensekit.run(load_recipe(recipe, ["defense.choose.values=[5]"]), workspace, [Watching()])
    assert COMPUTED
    assert {title.partition(":")[0] for title in COMPUTED} == {"trial threshold 5"}


def test_suspect_and_rows_are_those_of_a_defense_of_weights(finished: tuple[Path, Path, Result], base: Path) -> None:
    recipe, workspace, result = finished
    other = recipe.parent / "weights.yaml"
    other.write_text(RECIPE.format(base=base))
    COMPUTED.clear()
    assert run_attack(other, workspace, [Watching()])["suspect"].metrics == result.models["suspect"].metrics
    assert COMPUTED == []


def test_what_the_rule_and_the_sanitizer_read_is_neither_labelled_nor_told_apart(
    finished: tuple[Path, Path, Result],
) -> None:
    _, workspace, _ = finished
    seen = {}
    for path in (workspace / "store/artifacts").glob("*/manifest.json"):
        stage = json.loads(path.read_text())["stage"]
        if stage["kind"] in ("inspect", "sanitize"):
            seen[stage["title"]] = {key: stage[key] for key in ("params", "components", "seed")}
            assert set(stage["inputs"]) <= {"rows", "language-model", "inspected"}
    assert len({json.dumps(seen[f"onion on {rows} rows"]) for rows in ("dev", "test", "triggered")}) == 1


def test_what_people_are_told(finished: tuple[Path, Path, Result], tmp_path: Path) -> None:
    recipe, workspace, result = finished
    told = " ".join(story(result))
    assert "The defense leaves the model as it is: onion with 'reader0' rewrites every text" in told
    rows = (result.models["sanitized"].sanitized or {})["triggered"]
    changed = f"{rows.changed} of {rows.rows} triggered rows"
    assert f"It changed {changed}, and left {rows.words_left} of their {rows.words} words." in told
    page = render(result)
    assert "asked instead:" in page
    assert '<tr class="us"><th scope="row">sanitized<small>the suspect as it is' in page
    done = CliRunner().invoke(app, ["run", str(recipe), "--workspace", str(workspace), "--quiet"])
    assert done.exit_code == 0, done.output
    assert f"sanitized: {changed} changed" in done.output
    assert "the defender used 32 clean rows: all to choose" in done.output


def test_a_fixed_threshold_and_another_beside_it(
    finished: tuple[Path, Path, Result], base: Path, reader: Path, tmp_path: Path
) -> None:
    recipe, workspace, _ = finished
    fixed = (
        "  stage: input\n  sanitizer: {{name: onion, model: {reader}, threshold: 12}}\n"
        "  compare: {{mild: {{sanitizer: {{name: onion, model: {reader}, threshold: 1e9}}}}}}\n"
    )
    write(recipe.parent, base, reader, fixed).rename(recipe.parent / "fixed.yaml")
    write(recipe.parent, base, reader)
    result = defensekit.run(recipe.parent / "fixed.yaml", workspace)
    assert list(result.summary) == ["clean", "suspect", "mild", "sanitized"]
    assert result.models["mild"].metrics == result.models["suspect"].metrics
    assert result.clean_budget == 0
    assert not any(rows.changed for rows in (result.models["mild"].sanitized or {}).values())


def test_a_study_of_both_stages(finished: tuple[Path, Path, Result], base: Path, reader: Path) -> None:
    recipe, workspace, _ = finished
    place = recipe.parent
    text = RECIPE.format(base=base).replace("[0.25, 0.5]", "[0.5]")
    text = text.replace("[reset, {name: fine-tune, epochs: 2, learning_rate: 3e-3, batch_size: 8}]", "[reset]")
    (place / "weights.yaml").write_text(text + "  compare: {}\n")
    (place / "study.yaml").write_text(
        "name: both\nrecipe: weights.yaml\nmatrix:\n  method:\n    weights: {}\n    onion:\n      defense:\n"
        f"        stage: input\n        sanitizer: {{name: onion, model: {reader}}}\n"
        "        choose: {rule: accuracy-floor, over: sanitizer.threshold, values: [12, 1000], max_drop: 0.1}\n"
    )
    outcome = run_study(load_study(place / "study.yaml"), workspace)
    assert not outcome.failed
    finished_study = Finished(outcome.folder)
    table = pivot(finished_study)
    assert [row.labels[0] for row in table.rows] == [
        "clean reference",
        "suspect",
        "from the base ‡",
        "purified",
        "sanitized",
    ]
    assert all(cell.values for row in table.rows for cell in row.cells[:2])
    comparison = Comparison(finished_study)
    [group] = comparison.groups
    taken = comparison.taken(group, group.lines["onion"], 1.0)
    assert taken[0].value == 0  # at any price the lowest threshold does most
    assert comparison.taken(group, group.lines["weights"], 1.0)[0].value == 0.5
    assert comparison.differences().rows


def test_a_purified_model_of_a_defense_that_makes_none(finished: tuple[Path, Path, Result], tmp_path: Path) -> None:
    recipe, _, _ = finished
    with pytest.raises(UsageError, match=r"pico.yaml:7: defense.stage: 'onion' rewrites inputs and leaves the model"):
        purify_into(tmp_path / "out", load_recipe(recipe), tmp_path / "w")
    assert not (tmp_path / "out").exists()


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("stage: input", "stage: inputs", r"7: defense.stage: expected .*training, got 'inputs'. Did you mean 'input'"),
        ("  stage: input\n", "", r"7: defense.sanitizer: belongs to a defense of inputs; write `stage: input`"),
        (
            "  stage: input\n",
            "  stage: input\n  scorer: random\n",
            r"8: defense.scorer: belongs to a defense of weight",
        ),
        (", model: {reader}", "", r"8: defense.sanitizer.model: 'onion' needs `model:`, a causal language model"),
        ("{reader}", "gpt2", r"8: defense.sanitizer.model: 'gpt2' is no model source, no folder and no hub id with"),
        ("{reader}", "openai-community/gpt2", r"defense.sanitizer.model: 'openai-community/gpt2' needs a revision"),
        ("onion,", "onoin,", r"8: defense.sanitizer.name: there is no sanitizer 'onoin'. Did you mean 'onion'"),
        ("{{name: onion, model: {reader}}}", "onion", r"defense.sanitizer.model: 'onion' needs `model:`"),
        ("threshold,", "treshold,", r"9: defense.choose.over: onion has no parameter 'treshold'. Did you mean 'thres"),
        ("sanitizer.threshold", "selector.fraction", r"there is no part 'selector' \(expected sanitizer\)"),
        ("[2, ", "[-2, ", r"9: defense.choose.values.0: sanitizer.threshold can't be -2"),
    ],
)
def test_a_mistake_is_told_with_its_place(
    tmp_path: Path, base: Path, reader: Path, old: str, new: str, message: str
) -> None:
    assert old in INPUT
    with pytest.raises(UsageError, match=message):
        load_recipe(write(tmp_path, base, reader, INPUT.replace(old, new)))


def test_compared_with_something_that_is_no_sanitizer(tmp_path: Path, base: Path, reader: Path) -> None:
    with pytest.raises(UsageError, match=r"defense.compare.other.scorer: expected sanitizer\."):
        load_recipe(write(tmp_path, base, reader, INPUT + "  compare: {{other: {{scorer: random}}}}\n"))


def test_another_stage_over_a_recipe_takes_nothing_of_it(recipe: Path, reader: Path) -> None:
    over = recipe.with_name("over.yaml")
    over.write_text(f"extends: pico.yaml\ndefense: {{stage: input, sanitizer: {{name: onion, model: {reader}}}}}\n")
    assert load_recipe(over).choose is None
    mine = load_recipe(over, ["defense.sanitizer.threshold=7"])
    assert mine.defense.sanitizer
    assert mine.defense.sanitizer.parameters() == {"threshold": 7.0}
    assert mine.defense.language_model


def test_the_recipe_that_ships_is_the_quickstart_with_another_defense(reader: Path, tmp_path: Path) -> None:
    """The model that it names can't be had here; with another it goes on."""
    made, quickstart = (load_recipe(shipped.folder() / f"{name}.yaml") for name in ("onion", "quickstart"))
    assert made.name == "onion"
    assert made.defense.language_model
    assert made.defense.language_model.parameters()["id"] == "openai-community/gpt2"
    ours, theirs = made.resolved(), quickstart.resolved()
    assert [key for key in theirs if ours[key] != theirs[key]] == ["name", "defense"]
    settings = [f"model={make_base(tmp_path / 'base')}", f"data.name={tmp_path / 'rows.csv'}", "data.train=100"]
    settings += ["data.clean=32", "data.dev=16", "data.test=40", f"defense.sanitizer.model={reader}", "data.bound="]
    settings += ["data.max_length=32"]
    write_table(tmp_path / "rows.csv", make_sentences(300))
    titles = [stage.title for stage in preview(load_recipe(shipped.folder() / "onion.yaml", settings), tmp_path / "w")]
    assert "trial threshold 0: dev rows" in titles
    assert not any("purified" in title or "statistics" in title for title in titles)
