"""What a stranger's model folder may say of itself: a corpus of what was tried, and fuzzing over it."""

import json
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from defensekit.models import untrusted as headers_
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.config import label_names
from defensekit.models.loading import load_model
from defensekit.models.untrusted import CONFIG, COUNT, HEADER, check_folder, check_keys, read_header, read_json
from defensekit.utils.errors import UsageError
from tests.small_models import make_base, make_suspect


def file_of(header: Any, data: int = 8, length: int | None = None) -> bytes:
    """A safetensors file with a header of bytes or plain data, and so many bytes behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


CORPUS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "a header of 0 bytes in a file of 0"),
    "no header": (b"abc", "in a file of 3"),
    "longer than the file": (file_of({}, length=1 << 20), "a header of 1048576 bytes"),
    "longer than any memory": (file_of({}, length=(1 << 64) - 1), "a header of 18446744073709551615 bytes"),
    "no JSON": (file_of(b"{'a': 1}"), "not JSON"),
    "no text": (file_of(b"\xff\xfe{}"), "not JSON"),
    "no object": (file_of([1, 2]), "expected a JSON object"),
    "deep": (file_of(b"[" * 100_000), "not JSON"),
    "a number without end": (file_of(b'{"a": ' + b"9" * 10_000 + b"}"), "not JSON"),
    "a name twice": (file_of(b'{"a": 1, "a": 2}'), "the key 'a' is duplicated"),
    "a key twice": (file_of(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "the key 'dtype' is duplicated"),
    "no entry": (file_of({"a": 3}), "'a' has other keys"),
    "another key": (file_of({"a": entry(more=1)}), "'a' has other keys"),
    "no dtype": (file_of({"a": entry(dtype="F31")}), "the unknown dtype 'F31'"),
    "a dtype that is a list": (file_of({"a": entry(dtype=[])}), r"the unknown dtype \[\]"),
    "a negative size": (file_of({"a": entry(shape=[-2])}), "the shape"),
    "a size that is none": (file_of({"a": entry(shape=[True, 2])}), "the shape"),
    "a size that overflows": (file_of({"a": entry(shape=[1 << 63])}), "the shape"),
    "sizes whose product overflows": (file_of({"a": entry(shape=[1 << 62, 1 << 62])}), "8 bytes for the shape"),
    "too many sizes": (file_of({"a": entry(shape=[1] * 2000)}), "at most 16 sizes"),
    "one offset": (file_of({"a": entry(offsets=[8])}), "expected two, in order"),
    "offsets backwards": (file_of({"a": entry(offsets=[8, 0])}), "expected two, in order"),
    "offsets as text": (file_of({"a": entry(offsets="08")}), "expected two, in order"),
    "offsets beyond the file": (file_of({"a": entry(shape=[4], offsets=[0, 16])}), "the tensors end at byte"),
    "a file beyond the tensors": (file_of({"a": entry()}, data=9), "the tensors end at byte"),
    "a gap": (file_of({"a": entry(offsets=[4, 12])}, data=12), "'a' begins at byte"),
    "an overlap": (file_of({"a": entry(), "b": entry(offsets=[4, 12])}, data=12), "'b' begins at byte"),
    "the same place": (file_of({"a": entry(), "b": entry()}), "'b' begins at byte"),
}


@pytest.mark.parametrize("case", CORPUS)
def test_the_corpus_is_refused(tmp_path: Path, case: str) -> None:
    content, message = CORPUS[case]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_header(tmp_path / "model.safetensors")
    assert str(tmp_path / "model.safetensors") in str(caught.value)
    assert len(str(caught.value)) < 600


numbers = st.integers(-1, 20) | st.integers(-(1 << 70), 1 << 70) | st.booleans() | st.none() | st.floats()
anything = st.recursive(
    numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
)
tensor = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I64", "F4", "BOOL"]) | anything,
        "shape": st.lists(st.integers(0, 4), max_size=3) | anything,
        "data_offsets": st.lists(st.integers(0, 20), min_size=2, max_size=2) | anything,
    }
)
headers = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__"]) | st.text(max_size=8), tensor | anything, max_size=4
)


@given(header=headers.map(lambda made: json.dumps(made).encode()) | st.binary(max_size=60), data=st.integers(0, 40))
@settings(deadline=None, max_examples=150)
def test_any_header_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, header: bytes, data: int) -> None:
    """What is accepted here, the library that reads the tensors accepts as well, with the same shapes."""
    path = tmp_path_factory.mktemp("header") / "model.safetensors"
    path.write_bytes(file_of(header, data))
    (path.parent / "config.json").write_text("{}")
    with suppress(UsageError):
        found = read_header(path)
        checkpoint = Checkpoint(path.parent)
        for name in checkpoint.tensors:
            assert tuple(checkpoint.tensor(name).shape) == found[name].shape


@given(place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.none() | st.integers(0, 400))
@settings(deadline=None, max_examples=100)
@example(place=7, byte=255, cut=None)
def test_a_good_file_with_a_bad_byte_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int, cut: int | None
) -> None:
    path = tmp_path_factory.mktemp("flipped") / "model.safetensors"
    save_file({"a": torch.ones(3, 2), "b": torch.zeros(4).bfloat16()}, path, {"format": "pt"})
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(bytes(content[:cut]))
    with suppress(UsageError):
        assert sum(e.stop - e.start for e in read_header(path).values()) < len(content)


def test_a_header_takes_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst JSON that fits the bound (a sixteenth of it): small objects, as many as there is room for."""
    path, bound = tmp_path / "model.safetensors", HEADER // 16
    monkeypatch.setattr(headers_, "HEADER", bound)
    text = b"[" + b"{}," * (bound // 3 - 2) + b"{}]"
    path.write_bytes(file_of(text))
    tracemalloc.start()
    with pytest.raises(UsageError, match="expected a JSON object"):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * bound
    path.write_bytes(file_of(text + b" " * 8))
    with pytest.raises(UsageError, match="refused a header of 1 MiB; at most 1 are read"):
        read_header(path)


@given(index=st.dictionaries(st.sampled_from(["a", "weight_map"]), anything | st.dictionaries(st.text(), anything)))
@settings(deadline=None, max_examples=100)
@example(index={"weight_map": {"a": "model-1.safetensors\0"}})
@example(index={"weight_map": {"a": ".."}})
@example(index={"weight_map": {"a": "a" * 300 + ".safetensors"}})
@example(index={"weight_map": {}})
@example(index={"weight_map": {"b": "model-1.safetensors"}})
def test_any_index_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, index: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("index")
    (folder / "config.json").write_text("{}")
    save_file({"a": torch.ones(2)}, folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError):
        _ = Checkpoint(folder).tensors


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for i in (1, 2):
        save_file({"a": torch.ones(2)}, tmp_path / f"model-{i}.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"model-2.safetensors: a is in model-1.safetensors as well"):
        _ = Checkpoint(tmp_path).tensors


SIZES = ["hidden_size", "num_labels", "num_hidden_layers", "max_position_embeddings", "vocab_size", "type_vocab_size"]


@given(
    config=st.dictionaries(st.sampled_from(["model_type", "hidden_size", "id2label", "auto_map"]), anything)
    | st.dictionaries(st.sampled_from(SIZES), st.integers(1, 1 << 70))
)
@settings(deadline=None, max_examples=40)
@example(config={"num_labels": 10**9})
@example(config={"num_hidden_layers": 3_000_000})
@example(config={"hidden_size": 2**40, "max_position_embeddings": 2**40})
def test_any_config_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, suspect: Path, config: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("config")
    (folder / "model.safetensors").write_bytes((suspect / "model.safetensors").read_bytes())
    known = json.loads((suspect / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | config))
    with suppress(UsageError):
        load_model(folder)


@pytest.mark.parametrize(
    ("architecture", "config", "why"),
    [
        ("distilbert", {"n_layers": 3_000_000}, r"'n_layers' is 3000000; expected at most 10,000"),
        ("gpt2", {"n_layer": 9_000}, "asks for a far larger model than the 29 tensors in its files"),
        ("bert", {"num_labels": 10**9}, "'num_labels' is 1000000000"),
        ("bert", {"text_config": {"num_labels": 10**9}}, "'num_labels' is 1000000000"),
        ("bert", {"max_position_embeddings": 2**40}, "asks for a far larger model"),
        ("deberta-v2", {"max_position_embeddings": 2**26, "position_biased_input": False}, "asks for a far larger"),
    ],
)
def test_a_config_that_asks_for_more_than_its_files_hold_costs_nothing(
    tmp_path: Path, architecture: str, config: dict[str, Any], why: str
) -> None:
    model = make_suspect(tmp_path / "suspect", make_base(tmp_path / "base", architecture))
    known = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(known | config))
    with pytest.raises(UsageError, match=why):
        load_model(model)


def test_weights_that_are_tied_are_no_larger_model(tmp_path: Path) -> None:
    """An embedding that T5 or BART builds three times, larger than everything else and than what is left for a head."""
    config = transformers.BartConfig(
        d_model=256, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=60_000,
        encoder_attention_heads=2, decoder_attention_heads=2, num_labels=3,
    )  # fmt: skip
    transformers.BartForSequenceClassification(config).save_pretrained(tmp_path / "bart")
    assert load_model(tmp_path / "bart").config.num_labels == 3
    known = json.loads((tmp_path / "bart/config.json").read_text())
    for key in ("num_labels", "id2label", "label2id"):  # left out, they are as BART's class has them
        known.pop(key, None)
    (tmp_path / "bart/config.json").write_text(json.dumps(known))
    assert len(label_names(Checkpoint(tmp_path / "bart"))) == load_model(tmp_path / "bart").config.num_labels == 3
    tied = transformers.GPT2Config(n_embd=256, n_layer=1, n_head=2, n_positions=32, vocab_size=120_000)
    transformers.GPT2LMHeadModel(tied).save_pretrained(tmp_path / "gpt2")
    assert load_model(tmp_path / "gpt2").config.vocab_size == 120_000


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, ["a", "b", "c"]),
        ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ({"num_labels": 1}, ["LABEL_0"]),
    ],
)
def test_labels_are_counted_as_transformers_does(tmp_path: Path, config: dict[str, Any], labels: list[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    assert label_names(Checkpoint(tmp_path)) == labels
    assert list(transformers.AutoConfig.from_pretrained(tmp_path).id2label.values()) == labels


def test_a_class_that_can_not_be_made_has_no_labels_to_count(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nougat"}')
    with pytest.raises(UsageError, match=r"config.json: how many labels 'nougat' has is not known; expected `num_la"):
        label_names(Checkpoint(tmp_path))


def test_weights_of_64_bits_are_not_quantised(tmp_path: Path) -> None:
    model = make_suspect(tmp_path / "suspect", make_base(tmp_path / "base"))
    transformers.AutoModelForSequenceClassification.from_pretrained(model).double().save_pretrained(model)
    assert {entry.dtype for entry in Checkpoint(model).tensors.values()} == {"F64"}


def test_a_config_within_a_config_is_looked_at_however_deep() -> None:
    config: dict[str, Any] = {"num_labels": COUNT + 1}
    for _ in range(100_000):
        config = {"a": [config]}
    with pytest.raises(UsageError, match="'num_labels' is 10001; expected at most 10,000"):
        check_keys(Path("config.json"), config)


def test_files_beyond_their_bounds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(CONFIG + 1)
    with pytest.raises(UsageError, match=r"config.json: refused 4 MiB; at most 4 are read"):
        read_json(path, CONFIG)
    path.write_text("{}")
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(300 << 20)  # a hole: it takes no disk
    with pytest.raises(UsageError, match=r"tokenizer.json: refused 300 MiB; at most 256 are read"):
        _ = Checkpoint(tmp_path).config


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja", "more"),
        *("additional_chat_templates", "additional_chat_templates/rag.jinja"),
    ],
)
def test_links_that_leave_the_folder_are_refused(tmp_path: Path, suspect: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in suspect.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "secret").write_text("{}")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match=r"refused a link that leaves the folder \(to .*secret\)"):
        load_model(folder)
    (folder / name).unlink()
    (folder / name).symlink_to((folder / name).name)
    with pytest.raises(UsageError, match=r"refused a circular link|config.json is missing"):
        load_model(folder)


def test_a_hubs_cache_links_to_its_own_blobs(tmp_path: Path, suspect: Path) -> None:
    blobs, folder = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/0123"
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    for i, path in enumerate(sorted(suspect.iterdir())):
        (blobs / str(i)).write_bytes(path.read_bytes())
        (folder / path.name).symlink_to(Path("../../blobs") / str(i))
    check_folder(folder)
    assert Checkpoint(folder).digest() == Checkpoint(suspect).digest()


def test_an_adapter_is_no_model(tmp_path: Path, suspect: Path) -> None:
    for path in suspect.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc"}')
    for _ in "with a config", "without":
        with pytest.raises(UsageError, match=r"holds a PEFT adapter, no whole model.*merge it first.*merge_and_unload"):
            load_model(tmp_path)
        (tmp_path / "config.json").unlink(missing_ok=True)
