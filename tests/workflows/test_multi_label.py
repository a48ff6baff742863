"""A classifier whose rows have any number of labels is purified in one call, and step by step."""

import json
from pathlib import Path

import pytest
import torch
import transformers

import defensekit as dk
from defensekit.result.schema import Result
from defensekit.utils.errors import UsageError
from defensekit.workflows.purify import recipe_for
from defensekit.workflows.purify_model import purify_model
from defensekit.workflows.reset import reset_into
from tests.conftest import make_sentences, write_table
from tests.models.helpers import by_peft, make_adapter
from tests.multi_label import LISTS, make_classifier, make_rows, make_wide_base, set_keys, write_rows
from tests.small_models import make_tokenizer

ROWS = make_rows(300)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wide_base(tmp_path_factory.mktemp("lists") / "base")


@pytest.fixture(scope="module")
def suspect(base: Path) -> Path:
    return set_keys(make_classifier(base.parent / "suspect", base, ROWS), problem_type=LISTS)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", make_rows(160, seed=1))


def test_purify_searches_distils_and_keeps_the_kind_of_the_model(
    base: Path, suspect: Path, clean: Path, tmp_path: Path
) -> None:
    step = {"epochs": 6, "learning_rate": 0.005, "batch_size": 16, "texts": 60}
    quick = [f"defense.purifier.0.{key}={value}" for key, value in step.items()]
    result = purify_model(base, suspect, tmp_path / "out", clean, settings=quick, workspace=tmp_path / "w")
    assert isinstance(result, Result)
    purified = result.models["purified"]
    assert purified.tried
    # A base that is trained for a moment knows few words with a meaning: some may stand out beside it.
    assert {one.label for one in purified.triggers or ()} <= {"negative", "positive", "not negative", "not positive"}
    before, after = (result.models[name].metrics["acc"].value for name in ("suspect", "purified"))
    assert before > 0.9
    assert after > 0.5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == LISTS


def test_by_hand(base: Path, suspect: Path, clean: Path, tmp_path: Path) -> None:
    pair = dk.load_pair(base, suspect)
    data = dk.load_data(clean, pair=pair, clean=32, test=60)
    assert [sum(row.has(label) for row in data.test) for label in (0, 1)] == [
        int(count) for count in torch.tensor([row.indicator for row in data.test]).sum(0)
    ]
    curvature = dk.estimate(pair, "fisher", data.clean)
    selection = dk.select(dk.score(pair, "diffusion", curvature), {"name": "fraction", "fraction": 0.05})
    folder = dk.purify(pair, selection, ["reset"], data.clean, tmp_path / "out")
    assert dk.evaluate(suspect, data.test).metrics["acc"].value > 0.9
    assert dk.evaluate(folder, data.test).predictions.labels.shape == (60, 2)
    with pytest.raises(
        UsageError, match="the estimator FisherMC does not work for text with lists of labels; expected"
    ):
        dk.estimate(pair, "fisher-mc", data.clean)
    with pytest.raises(UsageError, match="the purifier Unlearn does not work for text with lists of labels"):
        dk.purify(pair, None, ["unlearn"], data.clean, tmp_path / "other")
    with pytest.raises(UsageError, match="the metric CalibrationError does not work for text with lists of labels"):
        dk.evaluate(suspect, data.test, ["ece"])
    with pytest.raises(UsageError, match=r"config.json sets `problem_type` to 'multi_label_classification'"):
        dk.load_data(write_table(tmp_path / "one.csv", make_sentences(200)), pair=pair)


def test_an_adapter_that_stays_one_is_measured_by_whole_sets(base: Path, tmp_path: Path) -> None:
    suspect, rows = make_adapter(tmp_path / "suspect", base, target_modules=["query", "value"]), make_rows(40)
    lines = [{"text": row.text, "label": [i for i, one in enumerate(row.indicator or ()) if one]} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = recipe_for(str(base), suspect, str(tmp_path / "rows.jsonl"), reset_alone=True)
    found = reset_into(tmp_path / "out", recipe, adapter_only=True, measured=True)
    assert found.accuracy is not None
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    weights = by_peft(base, suspect)
    model.load_state_dict({name: weights[name] for name in model.state_dict()}, strict=False)
    batch = make_tokenizer()([row.text for row in rows], padding=True, return_tensors="pt")
    with torch.inference_mode():
        answered = (model.eval()(**batch).logits > 0).int().tolist()
    right = [tuple(answer) == row.indicator for answer, row in zip(answered, rows, strict=True)]
    assert found.accuracy["suspect"] == sum(right) / len(rows)
