"""Models on disk: what is refused before anything reads it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from defensekit.models.checkpoint import Checkpoint, copy_companions
from defensekit.models.loading import load_model, load_tokenizer
from defensekit.models.writer import rewrite
from defensekit.utils.errors import DefenseKitError, UsageError


@pytest.fixture
def copy(tmp_path: Path, suspect: Path) -> Path:
    return Path(shutil.copytree(suspect, tmp_path / "model"))


def test_reads_what_is_there(suspect: Path) -> None:
    checkpoint = Checkpoint(suspect)
    expected = load_file(suspect / "model.safetensors")
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
    checkpoint.check_finite()


def test_any_dtype_and_shape_is_read_and_what_is_done_to_it_stays_with_the_reader(copy: Path) -> None:
    path = copy / "model.safetensors"
    more = {"large": torch.randn(3000, 7), "half": torch.randn(5).half(), "brain": torch.randn(2, 3).bfloat16()}
    more |= {"scalar": torch.tensor(0.5, dtype=torch.float64), "none": torch.empty(0, 4)}
    save_file(load_file(path) | more, path, metadata={"format": "pt"})
    before = path.read_bytes()
    for _ in range(2):
        for name, tensor in more.items():
            found = Checkpoint(copy).tensor(name)
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)
            found.zero_()
    assert path.read_bytes() == before


def test_a_file_that_shrank_since_its_header_was_read_is_damaged(copy: Path) -> None:
    checkpoint = Checkpoint(copy)
    name = list(checkpoint.tensors)[-1]
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"model.safetensors is damaged"):
        checkpoint.tensor(name)


def test_a_pickle_is_refused_and_never_opened(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"only as a pickle \(pytorch_model.bin\).*save_pretrained"):
        load_model(copy)


def test_a_truncated_file_is_refused(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"model.safetensors is damaged"):
        load_model(copy)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"model.safetensors is damaged"):
        _ = Checkpoint(copy).tensors


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "model.bin", "a/b.safetensors"])
def test_an_index_must_not_leave_its_folder(copy: Path, name: str) -> None:
    (copy / "model.safetensors").rename(copy.parent / "other.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UsageError, match="lies in the same folder"):
        _ = Checkpoint(copy).tensors


@pytest.mark.parametrize(
    "index", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "b.safetensors"}}']
)
def test_a_broken_index_is_an_error(copy: Path, index: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UsageError, match=r"index.json"):
        _ = Checkpoint(copy).tensors


def test_an_index_that_is_not_read_is_not_written(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    (out := tmp_path / "out").mkdir()
    rewrite(Checkpoint(copy), out, lambda name, values: None)
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]


def test_missing_pieces(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(UsageError, match=r"no model folder .*nowhere\.$"):
        _ = Checkpoint(tmp_path / "nowhere").tensors
    with pytest.raises(UsageError, match=rf"no model folder .*Did you mean '{copy.name}'\?"):
        _ = Checkpoint(copy.with_name(copy.name + "s")).tensors
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="holds no weights"):
        _ = Checkpoint(copy).tensors
    (copy / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config.json: not JSON"):
        _ = Checkpoint(copy).tensors
    (copy / "config.json").unlink()
    with pytest.raises(UsageError, match=r"config.json is missing"):
        _ = Checkpoint(copy).tensors


def test_weights_that_are_not_finite_are_named(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["bert.encoder.layer.1.output.dense.bias"][3] = float("inf")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DefenseKitError, match=r"NaN or infinity in bert.encoder.layer.1.output.dense.bias"):
        Checkpoint(copy).check_finite()


def test_remote_code_is_never_run(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"},
    }
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(copy / 'pwned')!r}, 'w')")
    with pytest.raises(UsageError, match=r"config.json: `auto_map` names code.*evil.py.*remove `auto_map`"):
        load_model(copy)
    with pytest.raises(UsageError, match="auto_map"):
        load_tokenizer(copy)
    assert not (copy / "pwned").exists()


def test_digest_follows_weights_and_tokenizer(copy: Path, suspect: Path) -> None:
    assert Checkpoint(copy).digest() == Checkpoint(suspect).digest()
    (copy / "notes.md").write_text("not part of the model")
    assert Checkpoint(copy).digest() == Checkpoint(suspect).digest()
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer | {"version": "1.0 "}))
    assert Checkpoint(copy).digest() != Checkpoint(suspect).digest()


def test_a_tokenizer_without_padding_pads_with_its_end(copy: Path) -> None:
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "[SEP]"}))
    assert load_tokenizer(copy).pad_token == "[SEP]"
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="neither a padding nor an end token"):
        load_tokenizer(copy)


def test_a_config_must_not_name_other_weights(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    with pytest.raises(UsageError, match="`transformers_weights` names other weights"):
        load_model(copy)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantised_weights_are_refused_by_name(copy: Path, dtype: torch.dtype) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["classifier.weight"] = tensors["classifier.weight"].to(dtype)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"is quantised.*classifier.weight"):
        Checkpoint(copy).check_finite()


def test_named_templates_are_part_of_the_model(copy: Path, suspect: Path, tmp_path: Path) -> None:
    template = copy / "additional_chat_templates/tool_use.jinja"
    template.parent.mkdir()
    template.write_text("{{ messages }}")
    one = Checkpoint(copy).digest()
    assert one != Checkpoint(suspect).digest()
    template.write_text("{{ messages }}!")
    assert Checkpoint(copy).digest() != one
    copy_companions(copy, tmp_path / "copied")
    assert (tmp_path / "copied" / template.relative_to(copy)).read_text() == "{{ messages }}!"
