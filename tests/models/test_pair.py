"""Base and suspect aligned, for every architecture and every way their files have named things."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import defensekit as dk
from defensekit.components import tensors
from defensekit.defense import scoring
from defensekit.models.aligned import Aligned
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.loading import check_loaded, load_model
from defensekit.models.names import align, is_embedding, layer_of
from defensekit.models.pair import Pair
from defensekit.utils.errors import DefenseKitError, UsageError
from tests.small_models import ARCHITECTURES, make_base, make_suspect


def rewrite(folder: Path, change: object) -> None:
    """Pass a folder's tensors through a function."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})  # type: ignore[operator]


def pair_of(base: Path, suspect: Path) -> Pair:
    return Pair(Checkpoint(base), Checkpoint(suspect))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_head_is_what_transformers_says_is_missing_from_the_base_file(architecture: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", architecture)
    suspect = make_suspect(tmp_path / "suspect", base)
    pair = pair_of(base, suspect)
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(base, output_loading_info=True)
    prefix = model.base_model_prefix + "."
    assert set(pair.head) == {name.removeprefix(prefix) for name in info["missing_keys"]}
    assert set(pair.left_out) == {name.removeprefix(prefix) for name in info["unexpected_keys"]}
    # Every tensor in scope pairs the base's own value with the suspect's.
    fresh, moved = model.state_dict(), load_file(suspect / "model.safetensors")
    names = pair.named_like_the_pair(name for name, _ in model.named_parameters())
    assert set(pair.scope) == set(names)
    for name, own in names.items():
        ours, theirs = pair.block(name)
        assert torch.equal(ours, fresh[own])
        assert torch.equal(theirs, moved[own])
    assert pair.dimensions() == sum(p.numel() for p in model.parameters())


def test_old_names_prefixes_buffers_and_pretraining_heads(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    suspect = make_suspect(tmp_path / "suspect", base)
    plain = pair_of(base, suspect)
    values = {name: plain.block(name) for name in plain.scope}

    def as_in_2018(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        out = {}
        for name, tensor in tensors.items():
            for new, former in old.items():
                name = name.replace(new, former)
            out["bert." + name] = tensor
        out["bert.embeddings.position_ids"] = torch.arange(64)[None]
        out["cls.predictions.bias"] = torch.zeros(3)
        out["cls.predictions.transform.LayerNorm.gamma"] = torch.ones(3)
        return out

    rewrite(base, as_in_2018)
    pair = pair_of(base, suspect)
    assert pair.scope == plain.scope
    assert pair.head == plain.head == ["classifier.bias", "classifier.weight"]
    assert pair.left_out == ["cls.predictions.bias", "cls.predictions.transform.LayerNorm.weight"]
    for name, (ours, theirs) in values.items():
        assert torch.equal(pair.block(name)[0], ours)
        assert torch.equal(pair.block(name)[1], theirs)
    check_loaded(load_model(base, ("a", "b")), Checkpoint(base))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_of_the_file_arrives_in_the_model(architecture: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", architecture)
    model = load_model(base, ("a", "b"))
    check_loaded(model, Checkpoint(base))
    with torch.no_grad():
        next(iter(model.base_model.parameters())).add_(1)
    with pytest.raises(UsageError, match="was not loaded"):
        check_loaded(model, Checkpoint(base))


def test_a_base_is_no_suspect(base: Path) -> None:
    with pytest.raises(UsageError, match=r"no fine-tuned classifier: it lacks classifier.bias, classifier.weight"):
        load_model(base)


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM", "GPT2LMHeadModel"])
def test_base_and_suspect_swapped_are_told_so(name: str, suspect: Path, tmp_path: Path) -> None:
    getattr(transformers, name)(ARCHITECTURES["gpt2" if "GPT2" in name else "bert"]()).save_pretrained(tmp_path)
    models, told = (Checkpoint(suspect), Checkpoint(tmp_path)), r"is a classifier, and .* has no head .* swapped\?"
    with pytest.raises(UsageError, match=told):
        _ = Pair(*models).scope
    with pytest.raises(UsageError, match=told):
        _ = Aligned(*models).compared


def test_gpt2_masks_are_buffers_but_biases_are_weights(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "gpt2")
    suspect = make_suspect(tmp_path / "suspect", base)
    rewrite(
        base,
        lambda tensors: tensors | {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.ones(())},
    )
    pair = pair_of(base, suspect)
    assert "h.0.attn.c_attn.bias" in pair.scope
    assert not any(name.endswith((".attn.bias", "masked_bias")) for name in pair.scope)


def test_a_base_with_its_own_head_of_that_shape_pairs_it(tmp_path: Path, base: Path) -> None:
    first = make_suspect(tmp_path / "first", base)
    second = make_suspect(tmp_path / "second", base, seed=5)
    assert pair_of(first, second).head == []


def with_more_tokens(base: Path, folder: Path, more: int = 7) -> Path:
    """A suspect on the base whose vocabulary is longer."""
    make_suspect(folder, base)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    model.resize_token_embeddings(model.config.vocab_size + more)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_rows_added_to_a_vocabulary_have_no_base_and_stay(architecture: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", architecture)
    suspect = with_more_tokens(base, tmp_path / "suspect")
    pair = pair_of(base, suspect)
    assert pair.added_rows == 7
    [name] = [name for name in pair.scope if pair.stored(name)[0].shape != pair.stored(name)[1].shape]
    ours, theirs = pair.block(name)
    rows = len(pair.stored(name)[0])
    assert torch.equal(ours[:rows], pair.stored(name)[0])
    assert torch.equal(ours[rows:], theirs[rows:])
    # Everything that moved is reset, in parts and whole: the shared rows are the base's, the added ones the suspect's.
    for scorer in ("magnitude", "random"):
        selection = dk.select(dk.score(pair, scorer), {"name": "fraction", "fraction": 1.0})
        dk.purify(pair, selection, "reset", [], tmp_path / scorer)
        after = load_file(tmp_path / scorer / "model.safetensors")
        for own, common in pair.by_file_name.items():
            assert torch.equal(after[own], pair.block(common)[0])
    assert selection.facts["eligible"] == sum(int(torch.ne(*pair.block(n)).sum()) for n in pair.scope)


def test_a_part_of_added_rows_is_the_whole(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_of(base, with_more_tokens(base, tmp_path / "suspect"))
    monkeypatch.setattr(tensors, "PART", 37)  # a part ends within the base's last row, within an added one, ...
    views = scoring.Views(pair, 0)
    for name in pair.scope:
        assert torch.equal(torch.cat([view.base for view in views.parts(name)]), views[name].base.reshape(-1))


def test_a_shorter_vocabulary_is_refused(tmp_path: Path, base: Path) -> None:
    longer = with_more_tokens(base, tmp_path / "longer")
    with pytest.raises(UsageError, match=r"vocab_size: base 60, suspect 53; a vocabulary may only have grown"):
        _ = pair_of(longer, make_suspect(tmp_path / "suspect", base)).scope


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "gpt2"])
@pytest.mark.parametrize("labels", [(2, 3), (3, 2)])
def test_a_head_for_other_labels_is_no_counterpart(architecture: str, labels: tuple[int, int], tmp_path: Path) -> None:
    bare = make_base(tmp_path / "base", architecture)
    first = make_suspect(tmp_path / "first", bare, labels=labels[0])
    second = make_suspect(tmp_path / "second", bare, labels=labels[1], seed=5)
    pair, plain = pair_of(first, second), pair_of(bare, second)
    shapes = {name: tensor.shape for name, tensor in load_file(second / "model.safetensors").items()}
    assert set(pair.head) == {name for name in plain.head if labels[1] == shapes[name][0]}
    assert all(base.shape == suspect.shape for base, suspect in map(pair.stored, pair.scope))


def test_weights_that_never_moved_are_equal_in_any_dtype(tmp_path: Path, base: Path) -> None:
    suspect = make_suspect(tmp_path / "suspect", base, drift=0.0)
    rewrite(suspect, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    pair = pair_of(base, suspect)
    assert all(torch.equal(*pair.block(name)) for name in pair.scope)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            {"hidden_size": 24},
            ["hidden_size: base 24, suspect 16", "embeddings.LayerNorm.bias: base [24], suspect [16]"],
        ),
        ({"num_hidden_layers": 3}, ["num_hidden_layers: base 3, suspect 2", "encoder.layer.2", "only in the base"]),
        ({"num_hidden_layers": 1}, ["encoder.layer.1", "only in the suspect"]),
        ({"vocab_size": 99}, ["vocab_size", "embeddings.word_embeddings.weight: base [99, 16]"]),
    ],
)
def test_misfits_are_refused_with_their_differences(
    tmp_path: Path, suspect: Path, change: dict[str, int], parts: list[str]
) -> None:
    config = ARCHITECTURES["bert"]()
    config.update(change)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "base")
    with pytest.raises(UsageError, match="don't fit each other") as caught:
        _ = pair_of(tmp_path / "base", suspect).scope
    for part in parts:
        assert part in str(caught.value)


def test_another_architecture_is_refused(tmp_path: Path, suspect: Path) -> None:
    with pytest.raises(UsageError, match="model_type: base gpt2, suspect bert"):
        _ = pair_of(make_base(tmp_path / "gpt2", "gpt2"), suspect).scope


def test_layers() -> None:
    names = ["encoder.layer.11.output.dense.weight", "embeddings.LayerNorm.bias", "h.3.ln_1.weight", "norm.weight"]
    assert [layer_of(name) for name in names] == ["encoder.layer.11", "embeddings", "h.3", "norm"]
    assert [is_embedding(name) for name in names] == [False, True, False, False]
    assert all(map(is_embedding, ("wte.weight", "embed_tokens.weight", "embed_in.weight", "shared.weight")))
    assert not any(map(is_embedding, ("embed_out.weight", "lm_head.weight", "layers.0.shared_expert.up_proj.weight")))


def test_align_never_merges_two_names() -> None:
    ours, theirs = align(["model.a", "a", "model.b"], ["a", "model.a", "model.b"])
    assert sorted(ours.values()) == ["a", "model.a", "model.b"]
    assert ours.keys() == theirs.keys()


def test_a_base_beyond_half_precision_is_named(tmp_path: Path, base: Path) -> None:
    suspect = make_suspect(tmp_path / "suspect", base)
    large = make_base(tmp_path / "base")
    name = "encoder.layer.0.output.dense.weight"
    rewrite(large, lambda tensors: tensors | {name: tensors[name] + 70_000})
    rewrite(suspect, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    said = rf"{name}: the base has values up to 7e\+04, which the suspect's torch.float16 can't hold"
    with pytest.raises(DefenseKitError, match=said):
        pair_of(large, suspect).block(name)
    with pytest.raises(DefenseKitError, match=said):
        list(Aligned(Checkpoint(large), Checkpoint(suspect)).blocks(name))
