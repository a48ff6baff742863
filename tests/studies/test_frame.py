"""A study's results as a frame, against numbers known beforehand."""

from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest

import defensekit
from defensekit.studies.frame import _lower, export
from defensekit.utils.errors import DefenseKitError
from tests.studies.helpers import ATTACK, FRACTION, SCORER, ended, id_of, write_study


def test_every_run_model_and_metric_is_a_row(study: Path) -> None:
    frame = defensekit.results(study)
    assert len(frame) == 7 * 3 * 2 + 2
    assert list(frame.columns[:7]) == ["study", "run", "seed", "state", "error", SCORER, ATTACK]
    assert not frame.duplicated(["run", "model", "metric", "trial"]).any()
    [row] = frame[(frame[SCORER] == "diffusion") & (frame[ATTACK] == "sentence") & (frame.seed == 2)][
        lambda found: (found.model == "purified") & (found.metric == "acc")
    ].itertuples()
    assert (row.value, row.low, row.high, row.rows) == (
        pytest.approx(0.82),
        pytest.approx(0.77),
        pytest.approx(0.87),
        100,
    )
    assert (row.seconds, row.clean_rows) == (10.0, 768)
    floors = frame.groupby("metric")["floor"].agg(lambda values: values.dropna().unique().tolist())
    assert floors.to_dict() == {"acc": [], "asr": [0.1]}


def test_what_failed_and_what_is_missing_is_in_the_frame(study: Path) -> None:
    frame = defensekit.results(study)
    [failed], [missing] = (frame[frame.state == state].to_dict("records") for state in ("failed", "missing"))
    assert (failed["error"], failed["seed"], failed[SCORER]) == ("out of memory", 1, "random")
    assert (missing["seed"], missing[SCORER]) == (2, "random")
    for row in (failed, missing):
        assert all(pandas.isna(row[name]) for name in ("model", "metric", "value"))


def test_trials_can_be_told_from_what_was_chosen(tmp_path: Path) -> None:
    curve = {0.3: {"acc": 0.85, "asr": 0.9}, 0.6: {"acc": 0.8, "asr": 0.3}}
    found = ended(0.8, 0.3, curve=curve, chosen=0.6)
    frame = defensekit.results(write_study(tmp_path / "studies/curve", [({}, 0, found)]))
    trials = frame[frame.trial.notna()]
    assert trials[trials.metric == "asr"].set_index("trial").value.to_dict() == {0.3: 0.9, 0.6: 0.3}
    assert set(trials.model) == {"purified"}
    assert trials[trials.trial == 0.3].dev_accuracy.iloc[0] == 0.85
    assert set(frame[frame.trial.isna()].model) == {"clean", "suspect", "purified"}
    assert (set(frame.rule), set(frame.over), set(frame.chosen)) == ({"accuracy-floor"}, {"selector.fraction"}, {0.6})


def test_axes_keep_their_types_and_take_no_other_columns_place(tmp_path: Path) -> None:
    first = {"model": "minilm", FRACTION: 0.25, "training.epochs": 2, "training.dropout": True, "mixed": 1}
    second = {"model": "bert", FRACTION: 1, "training.epochs": 3, "training.dropout": False, "mixed": "one"}
    place = write_study(tmp_path / "studies/types", [(first, 0, ended(0.8, 0.2)), (second, 0, None)])
    frame = defensekit.results(place)
    kinds = {name: str(frame[name].dtype) for name in ("axis.model", *list(first)[1:])}
    assert list(kinds.values()) == ["string", "Float64", "Int64", "boolean", "string"]
    assert set(frame["mixed"]) == {"1", "one"}
    assert set(frame["model"].dropna()) == {"clean", "suspect", "purified"}


def test_csv_and_parquet_say_the_same(study: Path, tmp_path: Path) -> None:
    csv, parquet = export(study, tmp_path / "out")
    frame = defensekit.results(study)
    pandas.testing.assert_frame_equal(pandas.read_parquet(parquet), frame)
    again = pandas.read_csv(csv, dtype=dict(frame.dtypes))
    pandas.testing.assert_frame_equal(again, frame)


def test_a_study_may_be_copied_elsewhere(study: Path, tmp_path: Path) -> None:
    copied = study.rename(tmp_path / "copied")
    assert len(defensekit.results(copied)) == 44


def test_folders_without_a_study_and_damaged_ones_say_so(study: Path, tmp_path: Path) -> None:
    with pytest.raises(DefenseKitError, match="has no study that was run"):
        defensekit.results(tmp_path)
    done = id_of({SCORER: "diffusion", ATTACK: "word"}, 0)
    (study / "results" / f"{done}.json").write_text("{}")
    frame = defensekit.results(study)
    assert list(frame[frame.run == done].state) == ["missing"]  # its digest is another
    (study / "study.json").write_text('{"study": {}, "axes": {}, "runs": [{"id": "../../x", "axes": {}, "seed": 0}]}')
    with pytest.raises(DefenseKitError, match=r"study\.json is damaged \(at runs\.0\.id\)"):
        defensekit.results(study)


@pytest.mark.parametrize(
    ("axis", "lower"),
    [
        ("defense.selector.above", True),
        ("defense.purifier.1.keep", True),
        ("defense.purifier.0.keep", False),
        ("defense.purifier.7.keep", False),
        ("defense.scorer", False),
        ("seed", False),
    ],
)
def test_of_some_parameters_lower_values_do_more(axis: str, lower: bool) -> None:
    purifier = [{"name": "reset"}, {"name": "interpolate", "keep": 0.5}]
    recipe = {"defense": {"selector": {"name": "threshold", "above": 1.0}, "purifier": purifier}}
    assert _lower(SimpleNamespace(recipe=recipe), axis) is lower  # type: ignore[arg-type]
