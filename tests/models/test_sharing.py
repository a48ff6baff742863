"""Tensors that files hold under several names: compared once, reset in all places, and tied again on reload."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from defensekit.models.checkpoint import Checkpoint
from defensekit.models.loading import load_model
from defensekit.models.pair import Pair
from defensekit.scanner.scan import scan
from defensekit.utils.errors import UsageError
from defensekit.workflows.purify_model import purify_model
from defensekit.workflows.reset import ResetResult
from tests.conftest import ARCHITECTURES, VOCABULARY, make_tokenizer

_SMALL = {"vocab_size": len(VOCABULARY), "d_model": 16, "pad_token_id": 0, "decoder_start_token_id": 2}
_SMALL |= {"bos_token_id": 2, "eos_token_id": 3}
_LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
_LAYERS |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
TIED = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(ARCHITECTURES["gpt2"]()),
    "llama": lambda: transformers.LlamaForCausalLM(_tied("llama")),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(_tied("qwen3")),
    "bart": lambda: transformers.BartForSequenceClassification(transformers.BartConfig(**_SMALL, **_LAYERS)),
    "t5": lambda: transformers.T5ForSequenceClassification(
        transformers.T5Config(**_SMALL, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ),
    "masked": lambda: transformers.BertForMaskedLM(ARCHITECTURES["bert"]()),
}


def _tied(architecture: str) -> transformers.PreTrainedConfig:
    config = ARCHITECTURES[architecture]()
    config.tie_word_embeddings = True
    return config


def write(folder: Path, architecture: str, drift: float, every_name: bool) -> tuple[Path, list[list[str]]]:
    """A model with tied tensors, under all of their names or one; and the names of each."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = TIED[architecture]().eval()
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(drift * torch.randn_like(parameter))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    if every_name:
        tensors = {name: value.detach().clone() for name, value in model.named_parameters(remove_duplicate=False)}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, [group for group in names.values() if len(group) > 1]


@pytest.mark.parametrize("in_base", [False, True])
@pytest.mark.parametrize("architecture", TIED)
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
        [original] = (
            {id(stored[name]): stored[name] for name in group if name in stored}.values()
            if not in_base
            else [stored[group[0]]]
        )
        for name in group:
            assert torch.equal(after[name], original), name
    if architecture != "masked":
        loaded = dict(load_model(tmp_path / "out").named_parameters(remove_duplicate=False))
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
