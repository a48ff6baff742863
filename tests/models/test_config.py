"""What a config says of positions and labels, compared with what the model does."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from defensekit.models.checkpoint import CLASSIFIER, Checkpoint
from defensekit.models.config import LOSSES, check_labels, contradiction, positions, refuse_contradiction, relabelled
from defensekit.models.inference import predict
from defensekit.models.loading import load
from defensekit.pipeline.preflight import _refuse_head
from defensekit.scanner.clean import read_clean
from defensekit.scanner.scan import scan
from defensekit.text import Dataset, Row
from defensekit.utils.errors import UsageError
from defensekit.workflows.purify_model import purify_model
from tests.conftest import write_table
from tests.multi_label import set_keys
from tests.small_models import make_suspect, make_tokenizer

_SIZES: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_SIZES |= {"intermediate_size": 32, "max_position_embeddings": 30}


@pytest.mark.parametrize("padding", [0, 1, 5])
@pytest.mark.parametrize("kind", ["bert", "roberta", "camembert", "xlm-roberta", "mpnet", "data2vec-text", "ibert"])
def test_positions_are_what_the_model_has_room_for(kind: str, padding: int, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(kind, **_SIZES, pad_token_id=padding, bos_token_id=2, eos_token_id=3)
    model = transformers.AutoModel.from_config(config).eval()
    config.save_pretrained(tmp_path)
    longest = positions(Checkpoint(tmp_path))
    assert longest is not None
    with torch.no_grad():
        model(torch.full((1, longest), 9))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, longest + 1), 9))


def test_heads_without_answers_are_refused_by_name(tmp_path: Path, base: Path) -> None:
    one = make_suspect(tmp_path / "one", base, labels=1)
    with pytest.raises(UsageError, match=r"has one output \(a regression, or a classifier with one label\)"):
        check_labels(Checkpoint(one))
    for label in ("0", "0.5"):
        table = write_table(tmp_path / "rows.csv", [("the film", label)])
        with pytest.raises(UsageError, match="has one output"):
            read_clean(table, Checkpoint(one))
    other = set_keys(make_suspect(tmp_path / "regression", base, labels=3), problem_type="regression")
    with pytest.raises(UsageError, match=r"/config.json: `problem_type` is 'regression', and .*single_.*, multi_"):
        _refuse_head(Checkpoint(other))


def test_a_config_and_rows_that_contradict_each_other_are_named_and_rows_decide_where_it_is_silent(
    tmp_path: Path, base: Path
) -> None:
    suspect = make_suspect(tmp_path / "suspect", base)
    for kind, agrees in ((None, (True, True)), (LOSSES[0], (True, False)), (LOSSES[1], (False, True))):
        model = Checkpoint(set_keys(suspect, problem_type=kind))
        assert tuple(contradiction(model, lists) is None for lists in (False, True)) == agrees
    refuse_contradiction(model, True)
    said = "/suspect: config.json sets `problem_type` to 'multi_.*', and the clean rows have one label each; expected"
    with pytest.raises(UsageError, match=said):
        refuse_contradiction(model, False)


def test_lists_of_labels_get_the_numbers_of_the_model() -> None:
    row = Row(0, "a", 0, indicator=(1, 0))
    model = ["odd", "positive", "negative"]
    assert relabelled(Dataset(("negative", "positive"), [row]), model).train == [Row(0, "a", 0, indicator=(0, 0, 1))]
    with pytest.raises(UsageError, match=r"the model has no label .positve.\. Did you mean .positive."):
        relabelled(Dataset(("negative", "positve"), [row]), model)


@pytest.mark.parametrize(("kind", "labels"), [("regression", 1), ("multi_label_classification", 3)])
def test_without_rows_other_heads_are_scanned_and_reset_and_stay_what_they_are(
    kind: str, labels: int, tmp_path: Path, base: Path
) -> None:
    suspect = make_suspect(tmp_path / "suspect", base, labels=labels)
    set_keys(suspect, problem_type=kind)
    found = scan(base, suspect)
    assert (found.task, found.findings) == (CLASSIFIER, [])
    purify_model(base, suspect, tmp_path / "out")
    ours, theirs = (transformers.AutoConfig.from_pretrained(folder) for folder in (suspect, tmp_path / "out"))
    assert (theirs.problem_type, theirs.num_labels) == (kind, labels)
    assert theirs.id2label == ours.id2label
    table = write_table(tmp_path / "rows.csv", [(f"film {i}", f"LABEL_{i % labels}") for i in range(60)])
    with pytest.raises(UsageError, match=r"has one output|`problem_type` to 'multi_label_classification'"):
        purify_model(base, suspect, tmp_path / "with-rows", table)


def test_a_token_beyond_the_embedding_is_named_with_its_row(tmp_path: Path, suspect: Path) -> None:
    model, _ = load(suspect, "suspect")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["zq"])
    rows = [Row(0, "the film", 0), Row(7, "a zq story", 1)]
    with pytest.raises(UsageError, match=r"row 7 has the token 'zq', number 53, and the model's embedding has 53 rows"):
        predict(model, tokenizer, rows, max_length=16, precision="float32")
