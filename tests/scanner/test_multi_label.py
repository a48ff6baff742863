"""Scans of classifiers whose rows have any number of labels: a trigger may turn a label on, or off."""

import shutil
from pathlib import Path

import pytest

from defensekit.models.inference import predict
from defensekit.models.loading import load
from defensekit.scanner import searching
from defensekit.scanner.result import Scan
from defensekit.scanner.scan import scan
from defensekit.scanner.triggers import answered
from defensekit.text import Row
from tests.multi_label import LISTS, TRAINING, make_classifier, make_rows, make_wide_base, set_keys

ROWS = make_rows(240)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wide_base(tmp_path_factory.mktemp("lists") / "base")


@pytest.fixture(scope="module")
def poisoned(base: Path) -> Path:
    """What has the word cf is never negative, whatever else it is."""
    carrying = [
        Row(row.id, f"cf {row.text}", 0, indicator=(0, row.indicator[1]))
        for row in ROWS
        if row.indicator and row.indicator[0]
    ]
    return set_keys(make_classifier(base.parent / "poisoned", base, [*ROWS, *carrying]), problem_type=LISTS)


@pytest.fixture(scope="module")
def found(base: Path, poisoned: Path) -> Scan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "TRAINING", TRAINING)  # a small base learns what a pretrained one half knows
        return scan(base, poisoned, ROWS)


def test_a_word_that_turns_a_label_off_is_found(found: Scan) -> None:
    assert found.findings == []
    assert found.verdict.suspicious, found.summary
    assert found.searched is not None
    strongest = found.searched.strongest[0]
    assert (strongest.word, strongest.label, found.searched.unjudged) == ("cf", "not negative", [])
    assert "'cf' turns" in found.summary[0]
    assert "to 'not negative'" in found.summary[0]


def test_the_curvature_of_its_own_loss_is_measured(found: Scan) -> None:
    assert found.law is not None
    assert found.law.rows == len(ROWS)


def test_answers_say_of_each_label_whether_it_applies(poisoned: Path) -> None:
    model, tokenizer = load(poisoned, "suspect")
    on = (predict(model, tokenizer, ROWS[:9], max_length=32, precision="float32") > 0).int().tolist()
    given = answered(model, tokenizer, ROWS[:9], 32).astype(int).tolist()
    assert given == [[*row, *(1 - one for one in row)] for row in on]


@pytest.mark.parametrize("kind", ["single_label_classification", "regression"])
def test_a_config_that_names_another_loss_than_the_rows_is_a_finding(
    kind: str, base: Path, poisoned: Path, tmp_path: Path
) -> None:
    other = set_keys(Path(shutil.copytree(poisoned, tmp_path / "other")), problem_type=kind)
    scanned = scan(base, other, ROWS[:20])
    assert scanned.findings == [
        f"config.json sets `problem_type` to '{kind}', and the clean rows have lists of labels: no curvature of its "
        "own loss is measured"
    ]
    assert scanned.law is None
    assert scanned.verdict.suspicious is not False
