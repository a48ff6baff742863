"""What a stranger's adapter may hold: what can't be merged exactly is refused by name."""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from defensekit.models.adapter_merge import Merged, merged
from defensekit.models.adapters import Adapter
from defensekit.models.checkpoint import Checkpoint
from defensekit.utils.errors import UsageError
from tests.models.helpers import TASKS, by_peft, make_adapter, make_causal
from tests.small_models import make_base, make_tokenizer


@pytest.mark.parametrize(
    ("architecture", "task", "settings", "message"),
    [
        (
            "bert",
            "SEQ_CLS",
            {"alora_invocation_tokens": [1]},
            "sets alora_invocation_tokens, .*merge it with peft first",
        ),
        ("bert", "SEQ_CLS", {"init_lora_weights": "pissa"}, "'pissa', which may change the base's weights"),
        ("bert", "SEQ_CLS", {"alpha_pattern": {"que.*": 3}}, r"has the regular expression 'que\.\*'"),
        ("bert", "SEQ_CLS", {"target_modules": ".*query"}, r"`target_modules` is '.\*query'; a list of names is under"),
        ("bert", "SEQ_CLS", {"exclude_modules": ["layer.1.attention.self.query"]}, "sets exclude_modules"),
        ("bert", "SEQ_CLS", {"layers_to_transform": 0}, "sets layers_to_transform"),
        ("bert", "SEQ_CLS", {"layers_to_transform": False}, "sets layers_to_transform"),
        ("bert", "SEQ_CLS", {"lora_bias": True, "target_modules": ["query"]}, "sets lora_bias"),
        ("gpt2", "CAUSAL_LM", {"trainable_token_indices": [1, 2]}, "sets trainable_token_indices"),
        ("gpt2", "CAUSAL_LM", {"target_modules": ["wte"]}, r"transformer.wte.weight, lm_head.weight are one tensor"),
        ("gpt2", "CAUSAL_LM", {"target_modules": ["lm_head"]}, r"and lm_head.weight, merged, would change both"),
        ("gpt2", "CAUSAL_LM", {"modules_to_save": ["wte"], "target_modules": ["c_fc"]}, "are one tensor"),
    ],
)
def test_what_is_not_merged_exactly_is_named(
    architecture: str, task: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = make_causal(tmp_path / "base", architecture) if task == "CAUSAL_LM" else make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, task, **settings)
    with pytest.raises(UsageError, match=message):
        merged(base, adapter, tmp_path / "w")
    assert not (tmp_path / "w/merged").exists()


def test_a_resized_vocabulary_is_named(tmp_path: Path) -> None:
    base = make_causal(tmp_path / "base", "gpt2")
    settings = {"modules_to_save": ["wte"], "target_modules": ["c_fc"]}
    adapter = make_adapter(tmp_path / "adapter", base, "CAUSAL_LM", **settings)
    tensors = load_file(adapter / "adapter_model.safetensors")
    longer = {n: torch.cat([t, t[:2]]) if n.endswith("wte.weight") else t for n, t in tensors.items()}
    save_file(longer, adapter / "adapter_model.safetensors")
    with pytest.raises(
        UsageError, match=r"another vocabulary: its transformer.wte.weight has 55 tokens, the base's 53"
    ):
        merged(base, adapter, tmp_path / "w")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.VeraConfig(task_type="SEQ_CLS", r=4), "'VERA'; only LORA and IA3 are merged here; merge it with peft"),
        (peft.LoHaConfig(task_type="SEQ_CLS", target_modules=["query"]), "'LOHA'; only LORA and IA3"),
        (peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2), "'PROMPT_TUNING' changes what goes into"),
        (peft.LoraConfig(task_type="TOKEN_CLS"), "expected the `task_type` SEQ_CLS or CAUSAL_LM, got 'TOKEN_CLS'"),
    ],
)
def test_other_adapters_are_named(config: Any, message: str, tmp_path: Path, base: Path) -> None:
    classes = {
        "SEQ_CLS": transformers.BertForSequenceClassification,
        "TOKEN_CLS": transformers.BertForTokenClassification,
    }
    peft.get_peft_model(classes[config.task_type].from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UsageError, match=message):
        merged(base, tmp_path / "adapter", tmp_path)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin", "model.safetensors.index.json"],
)
def test_an_adapter_beside_a_whole_model_is_refused(adapter: Path, base: Path, name: str) -> None:
    (adapter / name).write_bytes(b"")
    with pytest.raises(UsageError, match=f"an adapter and weights of a whole model .{name}.: which of them is meant"):
        merged(base, adapter, adapter.parent)


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({QUERY + "A.weight": torch.ones(4, 9)}),
            r"A is \[4, 9\], B is \[16, 4\], the matrix \[16, 16\]",
        ),
        (lambda t: t.update({QUERY + "A.weight": torch.ones(3, 16)}), r"A is \[3, 16\], B is \[16, 4\]"),
        (lambda t: t.update({QUERY + "A.weight": torch.ones(16)}), r"A is \[16\]"),
        (lambda t: t.update({QUERY + "A.weight": torch.ones(())}), r"A is \[\]"),
        (
            lambda t: t.update({QUERY + "A.weight": torch.ones(0, 16), QUERY + "B.weight": torch.ones(16, 0)}),
            "of rank 0",
        ),
        (
            lambda t: t.update({QUERY.replace("lora_", "weight"): torch.ones(16, 16)}),
            r"peft ignores base_model.*0.attention.self.query.weight; expected .*query.base_layer.weight",
        ),
        (
            lambda t: t.update({QUERY.replace("query.lora_", "key.base_layer.bias"): torch.ones(16)}),
            r"peft ignores .*0.attention.self.key.base_layer.bias; expected .*self.key.bias",
        ),
        (
            lambda t: t.update({QUERY + f"embedding_{part}": torch.zeros(16, 16) for part in "AB"}),
            "query.lora_embedding_A are one matrix's|query.lora_A.weight are one matrix's",
        ),
        (
            lambda t: t.update({QUERY + f"embedding_{part}": t.pop(QUERY + f"{part}.weight") for part in "AB"}),
            "query is of the class Linear, and peft ignores .*query.lora_embedding_A",
        ),
        (lambda t: t.update({QUERY + "A": torch.zeros(4, 16)}), "query.lora_A is not supported"),
        (
            lambda t: t.update(
                {QUERY.replace("query", "key") + f"{part}.weight": t[QUERY + f"{part}.weight"].clone() for part in "AB"}
            ),
            "0.attention.self.key is not among the `target_modules`",
        ),
        (lambda t: t.pop(QUERY + "B.weight"), "query lacks some of A, B"),
        (lambda t: t.update({QUERY + "magnitude_vector": torch.ones(16)}), "lora_magnitude_vector is not supported"),
        (lambda t: t.update({"bert.other": torch.ones(2)}), "bert.other is not supported"),
        (lambda t: t.update({"base_model.model.other": torch.ones(2)}), "has no other"),
        (
            lambda t: t.update({"base_model.model.classifier.weight": torch.ones(2, 3)}),
            r"adapter \[2, 3\], model \[2, 16\]",
        ),
        (lambda t: t.update({"base_model.model.classifier.weight": torch.ones(2, 16).int()}), "expected F64, F32, F16"),
        (
            lambda t: t.update({"base_model.model.classifier.weight": torch.ones(20_000, 16)}),
            "classifier.weight is a head for 20,000 labels; expected 1 to 10,000",
        ),
        (
            lambda t: t.update({"base_model.model.classifier.bias": torch.ones(20_000)}),
            r"classifier.bias: adapter \[20000\], model \[2\]",
        ),
        (
            lambda t: t.update({"base_model.model.classifier.weight": torch.ones(0, 16)}),
            "classifier.weight is a head for 0 labels; expected 1 to 10,000",
        ),
        (lambda t: t.pop("base_model.model.classifier.weight"), "classifier.weight is in neither"),
        (lambda t: [t.pop(name) for name in list(t) if "lora" in name], "it has no LORA weights"),
    ],
)
def test_tensors_that_don_t_fit(adapter: Path, base: Path, change: Any, message: str) -> None:
    change_tensors(adapter, change)
    with pytest.raises(UsageError, match=message):
        merged(base, adapter, adapter.parent)


def test_a_pickle_and_a_damaged_file_are_refused(adapter: Path, base: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-9])
    with pytest.raises(UsageError, match=r"adapter_model.safetensors is damaged"):
        merged(base, adapter, adapter.parent)
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(UsageError, match=r"only as a pickle \(adapter_model.bin\), which can run code"):
        merged(base, adapter, adapter.parent)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(UsageError, match=r"holds no weights: expected adapter_model.safetensors"):
        merged(base, adapter, adapter.parent)
    (adapter / "more.json").symlink_to("/etc/hostname")
    with pytest.raises(UsageError, match="refused a link that leaves the folder"):
        merged(base, adapter, adapter.parent)


def change_config(folder: Path, **change: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_a_matrix_for_what_is_none_is_refused(adapter: Path, base: Path) -> None:
    change_config(adapter, target_modules=["query", "value", "LayerNorm"])
    name = "base_model.model.bert.embeddings.LayerNorm.lora_"
    change_tensors(
        adapter, lambda t: t.update({f"{name}A.weight": torch.ones(2), f"{name}B.weight": torch.ones(16, 2)})
    )
    with pytest.raises(UsageError, match="LayerNorm is of the class LayerNorm, which is not merged here"):
        merged(base, adapter, adapter.parent)


@pytest.mark.parametrize("key", ["alpha_pattern", "target_modules", "modules_to_save"])
def test_names_without_number_or_end_are_refused(adapter: Path, base: Path, key: str) -> None:
    def given(names: list[str]) -> None:
        change_config(adapter, **{key: dict.fromkeys(names, 1) if key == "alpha_pattern" else names})

    given([f"layer.{i}" for i in range(1_001)])
    with pytest.raises(UsageError, match=rf"`{key}` has 1,001 names, expected (1,000|100) at most"):
        merged(base, adapter, adapter.parent)
    given(["query", "x" * 201])
    with pytest.raises(UsageError, match=f"`{key}` has a name of over 200 characters"):
        merged(base, adapter, adapter.parent)


def test_tensors_names_without_end_are_refused(adapter: Path, base: Path) -> None:
    change_tensors(adapter, lambda t: t.update({"base_model.model." + ".".join("a" * 500): torch.zeros(0)}))
    with pytest.raises(UsageError, match="there is a name of over 400 characters"):
        merged(base, adapter, adapter.parent)


def test_a_dot_in_what_is_saved_is_any_character_as_to_peft(adapter: Path, base: Path) -> None:
    change_config(adapter, modules_to_save=["classifier", "score", "qu.ry"])
    with pytest.raises(UsageError, match=r"self.query, .* is not among the `target_modules`.*peft ignores"):
        merged(base, adapter, adapter.parent)


def test_the_head_of_a_classifier_is_saved_whole_whether_it_is_named_or_not(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "roberta")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["query", "dense"])
    change_config(adapter, modules_to_save=None)
    made = load_file(merged(base, adapter, tmp_path) / "model.safetensors")
    for name, tensor in by_peft(base, adapter).items():
        assert torch.equal(tensor, made[name]), name


@pytest.mark.parametrize("settings", [{}, {"feedforward_modules": []}])
def test_what_peft_would_draw_at_random_is_refused(tmp_path: Path, base: Path, settings: dict[str, Any]) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["query"], **settings)
    change_tensors(adapter, lambda t: [t.pop(name) for name in list(t) if "layer.0" in name])
    made = load_file(merged(base, adapter, tmp_path) / "model.safetensors")
    assert all(torch.equal(made[name], value) for name, value in by_peft(base, adapter).items())
    change_config(adapter, **{"init_ia3_weights" if settings else "init_lora_weights": False})
    with pytest.raises(UsageError, match=r"nothing for bert.encoder.layer.0.attention.self.query, and peft draws"):
        merged(base, adapter, tmp_path)


def test_a_class_made_from_an_embedding_is_one(tmp_path: Path) -> None:
    config = transformers.OPTConfig(
        vocab_size=48, hidden_size=16, word_embed_proj_dim=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    base = tmp_path / "base"
    transformers.OPTForSequenceClassification(config).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["embed_positions", "q_proj"])
    made = load_file(merged(base, adapter, tmp_path) / "model.safetensors")
    for name, tensor in by_peft(base, adapter).items():
        assert torch.equal(tensor, made[name]), name


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"feedforward_modules": []}])
def test_what_an_adapter_held_before_training_is_what_peft_begins_with(
    tmp_path: Path, architecture: str, settings: dict[str, Any]
) -> None:
    """But for what is drawn at random, which is taken as it is."""
    base = make_base(tmp_path / "base", architecture)
    modules = {"bert": ["query", "word_embeddings"], "gpt2": ["c_attn", "wte"]}[architecture]
    modules = modules[: 1 if "feedforward_modules" in settings else 2]
    model = TASKS["SEQ_CLS"].from_pretrained(base)
    kind = peft.IA3Config if "feedforward_modules" in settings else partial(peft.LoraConfig, r=4)
    peft.get_peft_model(model, kind(task_type="SEQ_CLS", target_modules=modules, **settings)).save_pretrained(
        tmp_path / "new"
    )
    found = Merged(Checkpoint(base), Adapter(tmp_path / "new")).untrained()
    fresh = load_file(tmp_path / "new/adapter_model.safetensors")
    assert found.keys() == {name for name in fresh if "classifier" not in name and "score" not in name}
    for name, before in found.items():
        torch.testing.assert_close(before, fresh[name], rtol=2**-22, atol=0)


@pytest.mark.parametrize("saved", [None, ["query"]])
def test_a_matrix_where_peft_puts_lora_or_a_copy_is_not_taken_whole(
    adapter: Path, base: Path, saved: list[str] | None
) -> None:
    """Of a module that the config targets and the file has no LoRA for, and of one that is saved whole and has some."""
    change_config(adapter, modules_to_save=saved)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        if not saved:
            for part in "AB":
                tensors.pop(f"{QUERY}{part}.weight")
            tensors[QUERY.replace("lora_", "weight")] = torch.ones(16, 16)

    change_tensors(adapter, change)
    message = "query is not among the `target_modules`" if saved else "peft ignores .*query.weight; expected"
    with pytest.raises(UsageError, match=message):
        merged(base, adapter, adapter.parent)


def test_the_base_that_an_adapter_names_is_told_and_not_looked_at(adapter: Path, base: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    evil = {"base_model_name_or_path": "/etc/\x1b[31m" + "x" * 999, "auto_mapping": {"parent_library": "evil"}}
    (adapter / "adapter_config.json").write_text(json.dumps(config | evil))
    said: list[str] = []
    merged(base, adapter, adapter.parent, said.append)
    assert len(said) == 1
    assert "names its base: '/etc/\\x1b[31mxxx" in said[0]
    assert len(said[0]) < 600


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
KEYS = (
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "alpha_pattern",
    "use_rslora",
    "init_lora_weights",
    "bias",
    "revision",
)


@given(change=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), anything, max_size=3))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(change={"alpha_pattern": {"(a+)+$": 1}})
@example(change={"alpha_pattern": {"query": float("nan")}})
@example(change={"lora_alpha": 10**400})
@example(change={"lora_alpha": True})
@example(change={"task_type": []})
def test_any_config_is_merged_or_refused(adapter: Path, base: Path, change: dict[str, Any]) -> None:
    known = json.loads((adapter / "adapter_config.json").read_text())
    try:
        (adapter / "adapter_config.json").write_text(json.dumps(known | change))
        with suppress(UsageError):
            assert Merged(Checkpoint(base), Adapter(adapter)).entries
    finally:
        (adapter / "adapter_config.json").write_text(json.dumps(known))
