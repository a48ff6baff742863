"""The adapter to TrojAI's mitigation interface returns a model of the suspect's class that a defense has changed."""

import importlib.util
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from tests.conftest import ROOT, make_sentences
from tests.models.helpers import make_causal
from tests.small_models import make_suspect

FILE = ROOT / "docs/examples/trojai/defensekit_mitigation.py"
HALF = ["defense={scorer: random, selector: {name: fraction, fraction: 0.5}, purifier: [reset]}", "data.max_length=32"]


@pytest.fixture(scope="module")
def mitigation() -> Any:
    spec = importlib.util.spec_from_file_location("defensekit_mitigation", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DefenseKitMitigation


def collator(folder: Path) -> Any:
    return SimpleNamespace(tokenizer=transformers.AutoTokenizer.from_pretrained(folder))


def changed(before: Any, after: Any) -> int:
    """How many dimensions differ between two models of the same tensors."""
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    return sum(int((old[name] != new[name]).sum()) for name in old)


def test_the_signature(mitigation: Any) -> None:
    assert list(inspect.signature(mitigation.mitigate_model).parameters)[1:] == [
        "model",
        "collator",
        "peft_config",
        "dataset",
    ]
    assert mitigation("base", batch_size=4).batch_size == 4


def test_a_causal_language_model(mitigation: Any, tmp_path: Path) -> None:
    base = make_causal(tmp_path / "base", "gpt2")
    suspect = transformers.AutoModelForCausalLM.from_pretrained(make_causal(tmp_path / "suspect", "gpt2", seed=3))
    suspect = suspect.to(torch.bfloat16)
    rows = [{"story": text} for text, _ in make_sentences(60)]
    made = mitigation(base, settings=["data.max_length=32"], text="story")
    mitigated = made.mitigate_model(
        model=suspect, collator=collator(base), peft_config=None, dataset={"train": rows, "test": []}
    )
    assert type(mitigated) is type(suspect)
    assert mitigated.dtype == torch.bfloat16
    assert changed(suspect, mitigated) > 0
    mitigated.save_pretrained(tmp_path / "out")  # what the harness does with it


def test_a_classifier_with_labels(mitigation: Any, tmp_path: Path, base: Path) -> None:
    suspect = transformers.AutoModelForSequenceClassification.from_pretrained(make_suspect(tmp_path / "suspect", base))
    rows = [{"text": text, "label": label} for text, label in make_sentences(80)]
    made = mitigation(base, settings=HALF, label="label")
    mitigated = made.mitigate_model(suspect, collator(base), None, rows)
    assert mitigated.config.id2label == suspect.config.id2label
    assert changed(suspect, mitigated) > 0
