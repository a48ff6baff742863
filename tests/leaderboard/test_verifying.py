"""Cells of a row are run again: what a check can't see comes out, and a stranger's code runs only when asked for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from defensekit.leaderboard import verifying
from defensekit.leaderboard.checking import Checker
from defensekit.leaderboard.composition import study_for
from defensekit.leaderboard.entries import load_entry
from defensekit.leaderboard.row import Row, read_row
from defensekit.leaderboard.running import make_row
from defensekit.leaderboard.tracks import Cell, Track
from defensekit.pipeline.predictions import only_answer
from defensekit.pipeline.store import Store
from defensekit.result.schema import Result
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.cli.helpers import command
from tests.leaderboard.helpers import edit, edit_all, replace_answers, seal
from tests.leaderboard.test_checking import default

TRUST = ("twelve.py",)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, place: Path) -> list[Sequence[Cell]]:
    """Cells are repeated in this process."""
    asked = []

    def repeat(
        track: Track, row: Row, cells: Sequence[Cell], workspace: Path, scratch: Path, executor: str | None
    ) -> bool:
        asked.append(cells)
        make_row(track, load_entry(row.entry.path), workspace, scratch / "rows", cells=cells, executor=executor)
        return True

    monkeypatch.setattr(verifying, "repeat", repeat)
    return asked


def verify(track: Track, row: Path, place: Path, cells: int = 2, **options: Any) -> verifying.Verification:
    given = {"seed": 0, "by": "A. Keeper", "trust": TRUST, "workspace": place / "workspace"}
    return verifying.verify(track, row, cells, **given | options)


def test_a_row_comes_out_again(track: Track, row: Path, place: Path, here: Any) -> None:
    found = verify(track, row, place)
    assert found.same
    assert here == [track.cells[::-1]]
    assert [cell.differing for cell in found.cells] == [{"plain": 0, "triggered": 0}] * 2
    checked = Checker(track).check(row)  # a verification is no change of the row
    assert checked.verifications == [found]
    assert found.on["defensekit"]


@pytest.mark.usefixtures("made")
def test_suspects_are_taken_and_nothing_that_a_defense_made(track: Track, place: Path, tmp_path: Path) -> None:
    """The workspace that a row was made in has its answers: to find them there again would verify nothing."""
    verifying._take_suspects(study_for(track, None, track.cells), place / "workspace", tmp_path)
    taken = [artifact["stage"] for _, artifact, _ in Store(tmp_path / "store").entries()]
    assert {stage["kind"] for stage in taken} == {"data", "poison", "train"}
    assert {stage["title"] for stage in taken if stage["kind"] == "train"} == {"clean reference", "suspect"}
    everything = Store(place / "workspace/store").entries()
    assert {"purify", "predict"} & {artifact["stage"]["kind"] for _, artifact, _ in everything}


@pytest.mark.usefixtures("made")
def test_no_suspects_are_taken_that_another_number_of_threads_made(track: Track, place: Path, tmp_path: Path) -> None:
    study = study_for(track, None, track.cells, "{name: local, threads: 7}")
    verifying._take_suspects(study, place / "workspace", tmp_path)
    assert {artifact["stage"]["kind"] for _, artifact, _ in Store(tmp_path / "store").entries()} == {"data", "poison"}


def test_cells_are_drawn_by_the_seed(track: Track, row: Path, place: Path, here: Any) -> None:
    for seed in range(3):
        verify(track, row, place, cells=1, seed=seed)
    assert {cells[0] for cells in here} == set(track.cells)


def test_a_plugin_runs_only_when_it_is_named(track: Track, row: Path, place: Path, here: Any) -> None:
    with pytest.raises(UsageError, match=r"runs twelve.py, code of others .*: read it, then say `--trust twelve.py`"):
        verify(track, row, place, trust=("other.py",))
    entry = row / "entry.yaml"
    plain = yaml.safe_load(entry.read_text())
    entry.write_text(yaml.safe_dump({**plain, "plugin": {"requires": "defensekit-foo[bar]==1.0"}}))
    assert load_entry(entry).code == "defensekit-foo"
    assert here == []


# -- what a check can't see --------------------------------------------------------------------------------------------


def answer_right(tensors: dict[str, np.ndarray]) -> None:
    tensors["answers"] = np.eye(2, dtype=np.uint8)[tensors["labels"]]


def measure_again(track: Track, row: Path) -> None:
    """The numbers that belong to the answers, as a forger would write them."""
    checker = Checker(track)
    seal(row)
    read = read_row(row)
    for cell, result in read.cells.items():
        numbers = {
            name: {
                spec["name"]: checker.measure(spec, read, result, name).model_dump()
                for spec in checker.metrics_of(cell[0])
            }
            for name in result.models
        }

        def write(data: Any, numbers: Any = numbers, result: Result = result) -> None:
            for name, metrics in numbers.items():
                only = only_answer(read.answers(result, name, names=tuple(result.data["labels"]))["plain"])
                data["models"][name] |= {"metrics": metrics, "only": only}

        edit(row / f"cells/{cell[0]}-{cell[1]}.json", write)
    seal(row)


@pytest.mark.parametrize("model", ["purified", "suspect"])
def test_answers_that_were_made_up(model: str, track: Track, row: Path, place: Path, here: Any) -> None:
    replace_answers(row, "word-3", answer_right, (model,))
    measure_again(track, row)
    Checker(track).check(row)  # all of it fits
    found = verify(track, row, place)
    assert not found.same
    [bad] = [cell for cell in found.cells if max(cell.differing.values()) > 0.05]
    assert (bad.attack, bad.inputs) == ("word", [])
    assert not Checker(track).check(row).verifications[0].same


def test_a_default_that_was_not_the_default(track: Track, row: Path, place: Path, here: Any) -> None:
    edit_all(row, default)
    seal(row)
    Checker(track).check(row)
    found = verify(track, row, place)
    assert not found.same
    assert found.cells[0].inputs == ["parts.defense.purifier.1.parameters.weight_decay"]


def test_a_forged_verification(track: Track, row: Path, place: Path, here: Any) -> None:
    verify(track, row, place)
    [path] = (row / "verifications").iterdir()
    written = json.loads(path.read_text())

    def change(**changes: Any) -> None:
        path.write_text(json.dumps(written | changes))

    change(same=False)
    with pytest.raises(DefenseKitError, match=r"by A. Keeper says differs, and its numbers do not"):
        Checker(track).check(row)
    change(cells=[written["cells"][0] | {"seed": 9}])
    with pytest.raises(DefenseKitError, match="is of no cells of the track"):
        Checker(track).check(row)
    change(by="\x1b[2J")
    with pytest.raises(DefenseKitError, match="no verification"):
        Checker(track).check(row)
    change(row="0" * 64)  # of another row, or of this one before it was changed: it says nothing
    assert Checker(track).check(row).verified == []


def test_a_row_that_is_not_right_is_not_run(track: Track, row: Path, place: Path, here: Any) -> None:
    (row / "twelve.py").write_text("raise SystemExit")
    with pytest.raises(DefenseKitError, match=r"twelve.py is not what its digest"):
        verify(track, row, place)
    assert here == []


@pytest.mark.slow
def test_the_command(track: Track, row: Path, place: Path) -> None:
    """In a process of its own, without network where the system allows that."""
    arguments = ("leaderboard", "verify", str(row), "--by", "me", "--track", track.document.name, "--cells", "1", "-q")
    done = command(*arguments, "-w", str(place / "workspace"), "--trust", "twelve.py")
    assert done.returncode == 0, done.stderr
    assert "it came out again; that is written in the row" in done.stdout
    [found] = read_row(row).verifications
    assert found.isolated == verifying._can_be_alone()
    refused = command(*arguments)
    assert refused.returncode == 2
    assert "code of others" in refused.stderr
