"""Adapters merged: what peft's own merging gives, bit for bit."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from defensekit.models import adapter_merge
from defensekit.models.adapter_merge import Merged, merged
from defensekit.models.adapters import Adapter
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.loading import load_model, load_tokenizer
from defensekit.models.pair import Pair
from defensekit.utils.errors import UsageError
from defensekit.utils.files import OWNER, PART
from tests.models.helpers import TASKS, by_peft, make_adapter, make_causal
from tests.small_models import make_base, make_suspect

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "SEQ_CLS", {}),
    "bert, every linear layer": ("bert", "SEQ_CLS", {"target_modules": ["query", "dense"]}),
    "bert, biases": ("bert", "SEQ_CLS", {"bias": "lora_only", "target_modules": ["query", "dense"]}),
    "bert, all biases": ("bert", "SEQ_CLS", {"bias": "all"}),
    "bert, embedding": ("bert", "SEQ_CLS", {"target_modules": ["word_embeddings", "value"]}),
    "roberta": ("roberta", "SEQ_CLS", {}),
    "distilbert": (
        "distilbert",
        "SEQ_CLS",
        {"target_modules": ["q_lin"], "modules_to_save": ["pre_classifier", "classifier"]},
    ),
    "gpt2": ("gpt2", "SEQ_CLS", {"fan_in_fan_out": True}),
    "llama": ("llama", "SEQ_CLS", {}),
    "patterns": (
        "llama",
        "SEQ_CLS",
        {
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "up_proj": 5},
            "alpha_pattern": {"layers.1.self_attn.v_proj": 7, "q_proj": 3},
        },
    ),
    "root of the rank": ("llama", "SEQ_CLS", {"use_rslora": True, "lora_alpha": 5}),
    "DoRA": ("bert", "SEQ_CLS", {"use_dora": True, "target_modules": ["query", "dense"]}),
    "DoRA, embedding": ("bert", "SEQ_CLS", {"use_dora": True, "target_modules": ["word_embeddings", "value"]}),
    "DoRA, gpt2": ("gpt2", "SEQ_CLS", {"use_dora": True, "fan_in_fan_out": True, "use_rslora": True}),
    "IA3": (
        "bert",
        "SEQ_CLS",
        {"target_modules": ["query", "output.dense"], "feedforward_modules": ["output.dense"]},
    ),
    "IA3, gpt2": ("gpt2", "CAUSAL_LM", {"target_modules": ["c_attn", "c_fc"], "feedforward_modules": ["c_fc"]}),
    "causal gpt2": ("gpt2", "CAUSAL_LM", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "causal llama": ("llama", "CAUSAL_LM", {"target_modules": ["q_proj", "down_proj", "lm_head"]}),
}


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_merged_is_what_peft_merges_to_the_bit(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    architecture, task, settings = CASES[case]
    if task == "CAUSAL_LM":
        base = make_causal(tmp_path / "base", architecture, dtype)
    else:
        base = make_base(tmp_path / "base", architecture)
        transformers.AutoModel.from_pretrained(base).to(dtype).save_pretrained(base)
    adapter = make_adapter(tmp_path / "adapter", base, task, labels=3, **settings)
    folder = merged(base, adapter, tmp_path)
    made, expected = load_file(folder / "model.safetensors"), by_peft(base, adapter, task, labels=3)
    assert made.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == made[name].dtype, name
        assert torch.equal(tensor, made[name]), name
    # It loads, and what the adapter does not touch did not move.
    loaded, info = TASKS[task].from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert all(torch.equal(value, made[name].float()) for name, value in loaded.float().named_parameters())
    load_tokenizer(folder)
    assert folder == merged(base, adapter, tmp_path)
    pair, found = Pair(Checkpoint(base), Checkpoint(folder)), Merged(Checkpoint(base), Adapter(adapter))
    moved = {own for own, name in pair.by_file_name.items() if not torch.equal(*pair.block(name))}
    changed = {name for name in found.changes if made[name].any()}  # a bias of 0 stays one, whatever scales it
    assert moved == changed | set(found.adapter.whole) & pair.by_file_name.keys()


@pytest.mark.parametrize(
    ("settings", "ulps"),
    [({}, 1), ({"use_dora": True}, 4), ({"feedforward_modules": ["c_fc"], "target_modules": ["c_attn", "c_fc"]}, 1)],
)
def test_blocks_of_rows_are_within_a_few_ulps(
    settings: dict[str, Any], ulps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product of fewer rows may be summed in another order, and so may a length."""
    base = make_base(tmp_path / "base", "gpt2")
    every = {"target_modules": ["c_attn", "c_proj", "c_fc", "wte"]}
    adapter = make_adapter(tmp_path / "adapter", base, **(every | settings))
    monkeypatch.setattr(adapter_merge, "AT_ONCE", 100)
    made = load_file(merged(base, adapter, tmp_path) / "model.safetensors")
    for name, tensor in by_peft(base, adapter).items():
        torch.testing.assert_close(made[name], tensor, rtol=ulps * 2**-23, atol=ulps * 2**-24)


def test_a_merged_model_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000})())
        with pytest.raises(UsageError, match=r"the merged model takes 0.00 GB, and .* has 0.00 GB free"):
            merged(base, adapter, tmp_path / "w")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(adapter_merge, "write_streamed", stop)
    with pytest.raises(KeyboardInterrupt):
        merged(base, adapter, tmp_path / "w")
    assert not list((tmp_path / "w/merged").iterdir())


@pytest.mark.parametrize("name", ["vocab.txt", "chat_template.jinja"])
def test_a_merged_model_is_made_anew_where_a_copied_file_changed(adapter: Path, base: Path, name: str) -> None:
    first = merged(base, adapter, adapter.parent)
    (adapter / "checkpoint-1").mkdir()
    (adapter / "checkpoint-1/secret.json").symlink_to("/etc/hostname")
    assert merged(base, adapter, adapter.parent) == first  # subfolders are no part of it
    (adapter / name).write_text("other")
    second = merged(base, adapter, adapter.parent)
    assert second != first
    assert (second / name).read_text() == "other"


def test_two_who_merge_the_same_wait_for_each_other(adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*given: Any) -> None:
        writing.set()
        proceed.wait(30)
        write_streamed(*given)

    writing, proceed, write_streamed = Event(), Event(), adapter_merge.write_streamed
    workspace = adapter.parent / "w"
    monkeypatch.setattr(adapter_merge, "write_streamed", slowly)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(merged, base, adapter, workspace)
        assert writing.wait(30)
        second = pool.submit(merged, base, adapter, workspace)
        with pytest.raises(TimeoutError):
            second.result(timeout=1)
        proceed.set()
        assert first.result(30) == second.result(30)
    assert [path for path in (workspace / "merged").iterdir() if path.is_dir()] == [first.result()]


def test_what_a_killed_process_left_is_removed(adapter: Path, base: Path) -> None:
    folder = merged(base, adapter, adapter.parent)
    left = folder.with_name(f".{folder.name}.left{PART}")
    folder.rename(left)
    (left / OWNER).write_text("999999999")  # no process has this number
    assert merged(base, adapter, adapter.parent) == folder
    assert [path for path in folder.parent.iterdir() if path.is_dir()] == [folder]


@pytest.mark.parametrize("harm", ["change", "remove", "add", "digests"])
def test_a_merged_model_that_was_changed_is_made_anew(adapter: Path, base: Path, harm: str) -> None:
    folder = merged(base, adapter, adapter.parent)
    weights, said = (folder / "model.safetensors").read_bytes(), list[str]()
    if harm == "change":
        (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    elif harm == "remove":
        (folder / "config.json").unlink()
    elif harm == "add":
        (folder / "model.safetensors.index.json").write_text("{}")
    else:
        folder.with_name(f"{folder.name}.json").unlink()
    assert merged(base, adapter, adapter.parent, said.append) == folder
    assert "is not as it was written: merged anew" in said[1]
    assert (folder / "model.safetensors").read_bytes() == weights
    assert not (folder / "model.safetensors.index.json").exists()
    assert merged(base, adapter, adapter.parent, said.append) == folder
    assert len(said) == 3


def test_a_head_for_other_labels_than_the_base_s(tmp_path: Path) -> None:
    base = make_suspect(tmp_path / "base", make_base(tmp_path / "bare"), labels=2)
    folder = merged(base, make_adapter(tmp_path / "adapter", base, labels=5), tmp_path)
    assert load_model(folder).config.num_labels == 5
    assert Pair(Checkpoint(base), Checkpoint(folder)).head == ["classifier.bias", "classifier.weight"]
