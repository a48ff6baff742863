"""Keys of a model's files that made transformers or Python fail: each is read as if it were not there, or one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from defensekit.models.checkpoint import Checkpoint
from defensekit.models.inference import predict
from defensekit.models.loading import load
from defensekit.text import Row
from defensekit.utils.errors import UsageError

CONFIG, SETTINGS, TOKENIZER = "config.json", "tokenizer_config.json", "tokenizer.json"
ROWS = [Row(i, text, 0) for i, text in enumerate(("the film", "witty", "a long story of people"))]


def changed(suspect: Path, folder: Path, file: str, changes: dict[str, Any]) -> Path:
    copy: Path = shutil.copytree(suspect, folder / "model")
    data = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(data | changes).replace("HALF", "\\ud800"))
    return copy


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (CONFIG, {"architectures": ["HALF"]}, "half a character"),
        (CONFIG, {"id2label": {"0": "HALF", "1": "b"}}, "half a character"),
        (SETTINGS, {"eos_token": "HALF"}, "half a character"),
        (SETTINGS, {"model_max_length": "x"}, "expected a number as `model_max_length`"),
        (SETTINGS, {"model_max_length": [1]}, "expected a number as `model_max_length`"),
        (SETTINGS, {"model_input_names": []}, "`input_ids` among the `model_input_names`"),
        (SETTINGS, {"tokenizer_class": "RagTokenizer"}, "its tokenizer"),
        (SETTINGS, {"extra_special_tokens": 3}, "its tokenizer can't be loaded"),
    ],
)
def test_one_line(suspect: Path, tmp_path: Path, file: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        load(changed(suspect, tmp_path, file, changes), "suspect")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"return_dict": False}, {"chunk_size_feed_forward": 3}, {"output_hidden_states": True}]
)
def test_as_if_it_were_not_there(suspect: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    answers = []
    for folder in (suspect, changed(suspect, tmp_path, CONFIG, changes)):
        model, tokenizer = load(folder, "suspect")
        answers.append(predict(model, tokenizer, ROWS, max_length=8, precision="float32", batch_size=2))
    assert answers[0].equal(answers[1])
    assert Checkpoint(folder).config[next(iter(changes))] == next(iter(changes.values()))
