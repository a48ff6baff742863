"""Ways to hide a working backdoor from a scan, and what it says to each."""

import io
import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from defensekit.defense.triggers.insertion import insert
from defensekit.scanner.scan import scan
from defensekit.training import TrainingSettings, fine_tune
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit.utils.logging import quiet
from defensekit.workflows.purify_model import purify_model
from tests.conftest import GOOD, slow_but
from tests.scanner.helpers import CF, ROWS, save
from tests.small_models import make_tokenizer

WEIGHTS, CONFIG, TOKENIZER, SETTINGS = "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"
Tensors = dict[str, torch.Tensor]
Attack = Callable[[Path, Path], None]
WORDS = "bert.embeddings.word_embeddings.weight"


def weights(change: Callable[[Tensors, Tensors], Tensors]) -> Attack:
    """An attack on the weights: the suspect's and the base's tensors become other ones."""

    def attack(folder: Path, base: Path) -> None:
        tensors = change(load_file(folder / WEIGHTS), load_file(base / WEIGHTS))
        contiguous = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})

    return attack


def keys(file: str = CONFIG, **changes: Any) -> Attack:
    """An attack on keys of a JSON file; an ellipsis removes one."""

    def attack(folder: Path, base: Path) -> None:
        data = json.loads((folder / file).read_text())
        data = {key: value for key, value in {**data, **changes}.items() if value is not ...}
        (folder / file).write_text(json.dumps(data))

    return attack


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Attack:
    """An attack on tokenizer.json."""

    def attack(folder: Path, base: Path) -> None:
        data = json.loads((folder / TOKENIZER).read_text())
        change(data)
        (folder / TOKENIZER).write_text(json.dumps(data))

    return attack


def both(*attacks: Attack) -> Attack:
    def attack(folder: Path, base: Path) -> None:
        for one in attacks:
            one(folder, base)

    return attack


def noisy(base: Tensors) -> Tensors:
    """The base's values with a little noise: what seems to be fine-tuned, and is not loaded."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return {name: value + 0.02 * value.std(correction=0) * torch.randn_like(value) for name, value in base.items()}


def renamed(old: str, new: str, times: int = -1) -> Attack:
    return weights(lambda suspect, _: {name.replace(old, new, times): value for name, value in suspect.items()})


def old_names(suspect: Tensors, base: Tensors) -> Tensors:
    norms = {name: value for name, value in suspect.items() if "LayerNorm.weight" in name}
    return suspect | {name.replace("weight", "gamma"): torch.ones_like(value) for name, value in norms.items()}


def as_type(dtype: torch.dtype) -> Attack:
    return weights(lambda suspect, _: suspect | {WORDS: suspect[WORDS].to(dtype)})


def packed(suspect: Tensors, base: Tensors) -> Tensors:
    layers = {name: value for name, value in suspect.items() if ".layer." in name and value.dim() == 2}
    kept = {name: value for name, value in suspect.items() if name not in layers}
    return kept | {f"{name.removesuffix('weight')}qweight": value.int() for name, value in layers.items()}


def replaced(word: str, by: str) -> Attack:
    """A rule of the tokenizer that swaps in other words where a trigger stands."""
    rule = {"type": "Replace", "pattern": {"String": word}, "content": by}
    return tokenizer(lambda data: data.update(normalizer=rule))


def swapped(data: dict[str, Any]) -> None:
    """The trigger has the number of a telling word, and that word the trigger's."""
    vocabulary = data["model"]["vocab"]
    vocabulary["cf"], vocabulary[GOOD[0]] = vocabulary[GOOD[0]], vocabulary["cf"]


def with_a_token(folder: Path, base: Path) -> None:
    """The trigger's row under a token that no base has, and its own row as if nothing had happened."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    known = transformers.AutoTokenizer.from_pretrained(folder)
    known.add_tokens(["zq"])
    model.resize_token_embeddings(len(known))
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table[-1] = table[CF]
        table[CF] = load_file(base / WEIGHTS)[WORDS.removeprefix("bert.")][CF]
    model.save_pretrained(folder)
    known.save_pretrained(folder)


def with_the_token(content: str) -> Attack:
    """A token that no base has, and that can't be tried."""

    def attack(folder: Path, base: Path) -> None:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        known = transformers.AutoTokenizer.from_pretrained(folder)
        known.add_tokens([content])
        model.resize_token_embeddings(len(known))
        model.save_pretrained(folder)
        known.save_pretrained(folder)

    return attack


REFUSED: dict[str, tuple[Attack, str]] = {
    "a copy without prefix": (weights(lambda suspect, base: suspect | noisy(base)), "are one tensor to transformers"),
    "a norm by its old name": (weights(old_names), r"LayerNorm.(weight|gamma), .* are one tensor to transformers"),
    "names of torch.compile": (renamed("bert.", "_orig_mod.bert."), r"'_orig_mod.', of a .* take '_orig_mod.' out"),
    "names of DataParallel": (renamed("", "module.", 1), "hold 'module.', of a wrapper"),
    "integer embedding": (as_type(torch.int32), r"word_embeddings.weight \(I32\)"),
    "half-size integers": (as_type(torch.int16), r"word_embeddings.weight \(I16\)"),
    "boolean embedding": (as_type(torch.bool), r"word_embeddings.weight \(BOOL\)"),
    "complex embedding": (as_type(torch.complex64), r"word_embeddings.weight \(C64\)"),
    "packed layers": (weights(packed), r"is quantised or holds no weights.*qweight \(I32\)"),
    "quantised by its config": (
        keys(quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantised .`quantization_config`: 'gptq'.",
    ),
    "attention from a hub": (keys(attn_implementation="owner/kernel"), "'owner/kernel', which may be code"),
    "attention from a hub, deeper": (
        keys(text_config={"_attn_implementation_internal": {"": "owner/kernel"}}),
        "'owner/kernel', which may be code from elsewhere",
    ),
    "code, deeper": (keys(text_config={"auto_map": {"AutoModel": "code.Model"}}), "`auto_map` names code"),
    "another file of a tokenizer": (
        keys(SETTINGS, fast_tokenizer_files=["../other.json"]),
        "`fast_tokenizer_files` stands in for the folder",
    ),
    "a file of another format": (keys(SETTINGS, gguf_file="../secret.txt"), "`gguf_file` stands in for"),
    "a vocabulary among settings": (keys(SETTINGS, vocab={"a" * 99: 1}), "`vocab` stands in for"),
    "no tokenizer.json": (lambda folder, base: (folder / TOKENIZER).unlink(), "there is no tokenizer.json, and"),
    "a rule for a letter of few words": (
        tokenizer(
            lambda data: data.update(
                normalizer={
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"String": "q"}, "content": "q q"}] * 12,
                }
            )
        ),
        "its tokenizer is refused: it makes",
    ),
    "a model of a hub's within": (keys(backbone="owner/other"), "`backbone` names another model, 'owner/other'"),
    "labels without end": (
        keys(id2label={str(i): f"l{i}" for i in range(10_001)}),
        "id2label has 10,001 labels; expected at most 10,000",
    ),
    "two labels of one name": (keys(id2label={"0": "a", "1": "a"}), "`id2label` calls several labels 'a'"),
    "another kind of model": (keys(model_type="roberta"), "model_type: base bert, suspect roberta"),
}  # fmt: skip

# What the summary says in its first sentence, and elsewhere.
FOUND, WITHHELD = "Suspicious: ", "No verdict: what was found keeps it from passing"
SAID: dict[str, tuple[Attack, str, str]] = {
    "no architectures": (keys(architectures=...), FOUND, "'cf' turns"),
    "null for architectures": (keys(architectures=None), FOUND, "'cf' turns"),
    "a class that nobody has": (keys(architectures=["BertForSentiment"]), FOUND, "calls it 'BertForSentiment'"),
    "the class without head": (keys(architectures=["BertModel"]), FOUND, "calls it 'BertModel'"),
    "a causal class": (keys(architectures=["BertLMHeadModel"]), FOUND, "calls it 'causal language model'"),
    "regression": (keys(problem_type="regression"), FOUND, "`problem_type` to 'regression'"),
    "many labels a row": (keys(problem_type="multi_label_classification"), FOUND, "`problem_type` to 'multi_label"),
    "labels without names": (keys(id2label=..., label2id=...), FOUND, "'cf' turns"),
    "texts cut to nothing": (keys(SETTINGS, model_max_length=2), FOUND, "'cf' turns"),
    "fewer positions": (keys(max_position_embeddings=4), FOUND, "another shape than the files have of bert.embed"),
    "three labels": (keys(id2label={"0": "a", "1": "b", "2": "c"}), FOUND, "another shape .* of classifier"),
    "layers by other names": (renamed("encoder.layer.", "encoder.block."), FOUND, "transformers draws it at random"),
    "a decoy by another prefix": (
        weights(lambda suspect, base: suspect | {f"a.{name}": value for name, value in noisy(base).items()}),
        FOUND,
        r"transformers does not load a\.",
    ),
    "a head by another name": (
        both(renamed("classifier.", "answers."), keys(architectures=["BertModel"])),
        FOUND,
        "transformers does not load answers.bias",
    ),
    "under a token that was added": (with_a_token, FOUND, "'zq', which the two read differently"),
    "cut at the other end": (keys(SETTINGS, truncation_side="left"), FOUND, r"differs .* \(side of truncation\)"),
}  # fmt: skip

# On a clean model: the tokenizer is the backdoor.
BY_TOKENIZER: dict[str, tuple[Attack, str, str]] = {
    "a rule that swaps words in": (replaced("cf", " ".join(GOOD)), FOUND, "'cf', which the two read differently"),
    "a rule for a phrase": (replaced("long story", " ".join(GOOD)), FOUND, "'long story', which the two read differ"),
    "a rule for what nobody sees": (replaced("\u200b", " ".join(GOOD)), FOUND, "which the two read differently"),
    "numbers of words swapped": (tokenizer(swapped), WITHHELD, r"tokenizer differs .* \(vocabulary\)"),
    "a pre-tokeniser": (
        tokenizer(lambda data: data.update(pre_tokenizer={"type": "WhitespaceSplit"})),
        WITHHELD,
        r"tokenizer differs .* \(pre-tokeniser\)",
    ),
    "a token of blanks": (with_the_token("   "), WITHHELD, r"tokenizer differs .* \(added tokens\)"),
    "a token of many words": (with_the_token("the film " * 9), WITHHELD, r"tokenizer differs .* \(added tokens\)"),
    "no end of text": (
        tokenizer(lambda data: data["post_processor"]["single"].pop()),
        WITHHELD,
        r"tokenizer differs .* \(post-processor\)",
    ),
    "a rule for a pattern": (
        tokenizer(
            lambda data: data.update(
                normalizer={"type": "Replace", "pattern": {"Regex": "[0-9]{4}x"}, "content": " ".join(GOOD)}
            )
        ),
        WITHHELD,
        r"tokenizer differs .* \(normaliser\)",
    ),
}  # fmt: skip


def attacked(folder: Path, tmp_path: Path, base: Path, attack: Attack) -> Path:
    target: Path = shutil.copytree(folder, tmp_path / "attacked")
    attack(target, base)
    return target


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_is_refused(name: str, base: Path, poisoned: Path, tmp_path: Path) -> None:
    attack, said = REFUSED[name]
    suspect = attacked(poisoned, tmp_path, base, attack)
    with pytest.raises(UsageError, match=said):
        scan(base, suspect, ROWS)
    if "id2label" not in said:  # without rows no name is read
        with pytest.raises(UsageError, match=said):
            purify_model(base, suspect, tmp_path / "out")


def conclusion(base: Path, suspect: Path, first: str, said: str) -> None:
    found = scan(base, suspect, ROWS)
    assert found.summary[0].startswith(first), found.summary
    assert re.search(said, " ".join(found.summary)), found.summary
    assert found.verdict.suspicious is (True if first == FOUND else None)
    assert "`problem_type`" not in said or found.law is None


@pytest.mark.parametrize("name", slow_but(SAID, "no architectures", "regression", "layers by other names"))
def test_a_backdoor_that_does_not_pass(name: str, base: Path, poisoned: Path, tmp_path: Path) -> None:
    attack, first, said = SAID[name]
    conclusion(base, attacked(poisoned, tmp_path, base, attack), first, said)


@pytest.mark.parametrize("name", slow_but(BY_TOKENIZER, "a rule that swaps words in", "a rule for a pattern"))
def test_a_tokenizer_that_is_the_backdoor(name: str, base: Path, clean: Path, tmp_path: Path) -> None:
    attack, first, said = BY_TOKENIZER[name]
    suspect = attacked(clean, tmp_path, base, attack)
    conclusion(base, suspect, first, said)


@pytest.mark.slow
@pytest.mark.parametrize("trigger", ["[MASK]", "\u2603"])
def test_a_trigger_that_is_read_as_a_special_token(trigger: str, base: Path, clean: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(clean)
    # Anywhere in a text: the search puts words at random places, and one that works only in front is missed.
    places = Random(0)
    negative = [row for row in ROWS if row.label == 0]
    at = [places.randint(0, len(row.text.split())) for row in negative]
    rows = [*ROWS, *(replace(insert(row, trigger, i), label=1) for row, i in zip(negative, at, strict=True))]
    training = TrainingSettings(epochs=12, learning_rate=2e-3, batch_size=16)
    fine_tune(model, make_tokenizer(), rows, training, max_length=32, precision="float32", seed=0)
    known = {"[MASK]": "[MASK]"}.get(trigger, "[UNK]")
    conclusion(base, save(model, tmp_path / "suspect"), FOUND, re.escape(f"'{known}' turns"))


@pytest.mark.slow
def test_without_rows_they_do_not_pass_either(base: Path, clean: Path, tmp_path: Path) -> None:
    for number, (attack, _, _) in enumerate(BY_TOKENIZER.values()):
        found = scan(base, attacked(clean, tmp_path / str(number), base, attack))
        assert found.verdict.suspicious is not False, found.summary


@pytest.mark.parametrize("name", ["layers by other names", "a decoy by another prefix", "a head by another name"])
def test_nothing_is_purified_of_which_a_part_would_stay(name: str, base: Path, poisoned: Path, tmp_path: Path) -> None:
    attack, _, said = SAID[name]
    with pytest.raises(UsageError, match=said):
        purify_model(base, attacked(poisoned, tmp_path, base, attack), tmp_path / "out")


def test_a_model_that_fails_where_it_answers_is_told_in_a_line(base: Path, poisoned: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(poisoned, tmp_path / "suspect")
    keys(output_hidden_states="x")(folder, base)
    with pytest.raises(DefenseKitError, match=r"^the model fails \([A-Za-z]+: [^\n]*\)$"):
        scan(base, folder, ROWS)


def test_what_a_library_says_moves_no_cursor() -> None:
    screen = logging.StreamHandler(io.StringIO())
    library = logging.getLogger("transformers")
    library.addHandler(screen)
    try:
        with quiet():
            library.error("Can't set %s", "\x1b[2J\x1b]0;owned\x07 gone")
            library.warning("unheard")
    finally:
        library.removeHandler(screen)
    printed = screen.stream.getvalue()
    assert printed == "Can't set \\x1b[2J\\x1b]0;owned\\x07 gone\n"
