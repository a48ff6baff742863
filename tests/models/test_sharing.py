"""Tensors that files hold under several names: compared once, reset in all places, and tied again on reload."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from defensekit.models.checkpoint import Checkpoint
from defensekit.models.pair import Pair
from defensekit.scanner.scan import scan
from defensekit.utils.errors import UsageError
from defensekit.workflows.purify_model import purify_model
from defensekit.workflows.reset import ResetResult
from tests.conftest import VOCABULARY, slow_but
from tests.models.architectures import architectures
from tests.small_models import make_tokenizer

# The class of each kind of model that has an output over words, and two classifiers with tied embeddings.
OUTPUTS = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
CLASSIFIERS = {"bart-classifier": "bart", "t5-classifier": "t5"}
TIED = [*architectures(), *CLASSIFIERS]
QUICK = ("bert", "gpt2", "qwen3", *CLASSIFIERS)


def build(architecture: str) -> Any:
    """A tiny model whose embedding is tied to its output."""
    config = architectures()[CLASSIFIERS.get(architecture, architecture)]()
    config.tie_word_embeddings = True
    if architecture in CLASSIFIERS:
        return transformers.AutoModelForSequenceClassification.from_config(config)
    for output in OUTPUTS:
        if type(config) in getattr(transformers, output)._model_mapping:
            return getattr(transformers, output).from_config(config)
    raise AssertionError(f"{architecture} has no output over words")


def write(folder: Path, architecture: str, drift: float, every_name: bool) -> tuple[Path, list[list[str]]]:
    """A model with tied tensors, under all of their names or one; and the names of each."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = build(architecture).eval()
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(drift * torch.randn_like(parameter))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    groups = [group for group in names.values() if len(group) > 1]
    if every_name:
        tensors = load_file(folder / "model.safetensors")
        for group in groups:
            stored = next(tensors[name] for name in group if name in tensors)
            tensors |= {name: stored.clone() for name in group}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, groups


@pytest.mark.parametrize("in_base", [False, True])
@pytest.mark.parametrize("architecture", slow_but(TIED, *QUICK))
def test_a_tensor_of_two_names_is_reset_in_all_places_and_tied_again(
    architecture: str, in_base: bool, tmp_path: Path
) -> None:
    base, _ = write(tmp_path / "base", architecture, 0.0, in_base)
    suspect, groups = write(tmp_path / "suspect", architecture, 0.1, True)
    assert groups
    pair = Pair(Checkpoint(base), Checkpoint(suspect))
    pair.check()
    assert pair.head == []
    purify_model(base, suspect, tmp_path / "out", settings=["defense.selector.fraction=1.0"])
    after, stored = load_file(tmp_path / "out/model.safetensors"), load_file(base / "model.safetensors")
    for group in groups:
        original = next(stored[name] for name in group if name in stored)
        for name in group:
            assert torch.equal(after[name], original), name
    kind = getattr(transformers, Checkpoint(suspect).config["architectures"][0])
    loaded = dict(kind.from_pretrained(tmp_path / "out").named_parameters(remove_duplicate=False))
    assert all(loaded[name] is loaded[group[0]] for group in groups for name in group)
    assert scan(base, suspect).findings == []


def test_one_tensor_with_two_values_is_refused(tmp_path: Path) -> None:
    base, _ = write(tmp_path / "base", "gpt2", 0.0, False)
    suspect, _ = write(tmp_path / "suspect", "gpt2", 0.1, True)
    tensors = load_file(suspect / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, suspect / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"are one tensor by config.json, and differ"):
        Pair(Checkpoint(base), Checkpoint(suspect)).check()


@pytest.mark.parametrize("in_base", [False, True])
def test_perplexity_and_curvature_of_what_is_stored_twice(in_base: bool, tmp_path: Path) -> None:
    base, _ = write(tmp_path / "base", "gpt2", 0.0, in_base)
    suspect, _ = write(tmp_path / "suspect", "gpt2", 0.1, True)
    (tmp_path / "rows.csv").write_text("text\n" + "".join(f"the film is a {word}\n" for word in VOCABULARY[20:30]))
    result = purify_model(base, suspect, tmp_path / "out", tmp_path / "rows.csv")
    assert isinstance(result, ResetResult)
    assert result.perplexity is not None
