"""ONION rewrites what the suspect is asked as it says."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from defensekit.defense import sanitizing
from defensekit.utils.errors import UsageError
from defensekit_baselines.onion import Onion, perplexities
from tests.conftest import VOCABULARY
from tests.defense.helpers import context
from tests.plugins.baselines.helpers import TEXTS
from tests.small_models import ARCHITECTURES, make_tokenizer


def perplexity_by_loop(text: str, folder: Path) -> float:
    """exp(-1/(T-1) sum_t log p(token t | tokens before it)), token by token, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    tokens = PreTrainedTokenizerFast.from_pretrained(folder)(text)["input_ids"]
    total = 0.0
    with torch.no_grad():
        for i in range(1, len(tokens)):
            logits = model(input_ids=torch.tensor([tokens[:i]])).logits[0, -1]
            total -= float(logits[tokens[i]] - logits.logsumexp(0))
    return math.exp(total / (len(tokens) - 1))


def test_suspicions_are_those_of_a_loop_in_float64(reader: Path) -> None:
    texts = [*TEXTS[:3], f"cf {TEXTS[3]}", "film superb"]
    for text, found in zip(texts, Onion().inspect(texts, context(reader)), strict=True):
        words, whole = text.split(), perplexity_by_loop(text, reader)
        expected = [whole - perplexity_by_loop(" ".join(words[:i] + words[i + 1 :]), reader) for i in range(len(words))]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-3)


@given(texts=st.lists(st.lists(st.sampled_from(VOCABULARY[5:]), max_size=12).map(" ".join), max_size=6))
@settings(deadline=None, max_examples=15)
def test_perplexities_do_not_hang_on_their_batch(reader: Path, texts: list[str]) -> None:
    model, tokenizer = sanitizing.language_model(reader)
    together = perplexities(texts, model, tokenizer, 64)
    alone = [one for text in texts for one in perplexities([text], model, tokenizer, 64)]
    assert together == pytest.approx(alone, rel=1e-4)


def test_a_rare_word_put_in_is_the_most_suspicious_one(reader: Path) -> None:
    rng, hits, above = random.Random(0), 0, 0
    triggered = []
    for text in TEXTS[:100]:
        words = text.split()
        place = rng.randrange(len(words) + 1)
        triggered.append((place, " ".join([*words[:place], "cf", *words[place:]])))
    found = Onion().inspect([text for _, text in triggered], context(reader))
    clean = Onion().inspect(TEXTS[:100], context(reader))
    usual = max(s for suspicions in clean for s in suspicions if s is not None)
    for (place, _), suspicions in zip(triggered, found, strict=True):
        hits += place == max(range(len(suspicions)), key=lambda i: suspicions[i] or 0)
        above += (suspicions[place] or 0) > usual
    assert hits == 100
    assert above > 95  # and stands out from every word of every clean text


def test_what_is_above_the_threshold_goes_and_never_all(reader: Path) -> None:
    def left(text: str, suspicions: Sequence[float | None], threshold: float) -> str:
        [made] = Onion(threshold=threshold).sanitize([text], [suspicions], context(reader))
        return made

    assert left("a  b\tc", [1.0, 3.0, 2.0], 1.0) == "a"
    assert left("a  b\tc", [1.0, 3.0, 2.0], 2.0) == "a c"
    assert left("a  b\tc", [1.0, 3.0, 2.0], 3.0) == "a  b\tc"  # untouched, blanks and all
    assert left("a b c", [5.0, 3.0, 4.0], 0.0) == "b"  # the least suspicious one stays
    assert left("a b", [None, None], 0.0) == "a b"
    assert left("", [], 0.0) == ""
    assert Onion().inspect(["", " ", "film"], context(reader)) == [[], [], []]
    assert Onion().inspect([], context(reader)) == []


def test_words_behind_what_is_read_are_kept_unread(reader: Path) -> None:
    text = " ".join(["cf", *TEXTS[0].split(), *["superb"] * 200])
    [short] = Onion().inspect([text], context(reader, max_length=10))
    assert len(short) == 8  # of ten tokens two are the tokenizer's own
    [long] = Onion().inspect([text], context(reader, max_length=1000))
    assert len(long) == 62  # the model has 64 positions
    [made] = Onion(threshold=0.0).sanitize([text], [[9.0] * 62], context(reader))
    assert made.split() == text.split()[62:]
    [alone] = Onion().inspect([" ".join(text.split()[:8])], context(reader))
    assert short == pytest.approx(alone, rel=1e-4)


def test_a_word_that_is_cut_in_two_is_not_read(tmp_path: Path) -> None:
    """With a tokenizer of letters: the limit falls within a word."""
    from tokenizers import Tokenizer, models

    letters = {letter: i for i, letter in enumerate(" abcdefg")}
    inner = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(letters, [])), pad_token=" ")
    from defensekit_baselines.onion import _read

    words = ["ab", "cde", "fg"]
    assert [_read(words, inner, limit) for limit in (1, 2, 3, 5, 6, 7, 8, 9, 20)] == [
        [], ["ab"], ["ab"], ["ab"], ["ab", "cde"], ["ab", "cde"], ["ab", "cde"], words, words,
    ]  # fmt: skip


def test_a_tokenizer_that_pads_in_front_changes_nothing(reader: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(reader).save_pretrained(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path)
    expected = Onion().inspect(TEXTS[:8], context(reader))
    for found, right in zip(Onion().inspect(TEXTS[:8], context(tmp_path)), expected, strict=True):
        assert found == pytest.approx(right, rel=1e-4)


# -- the model that it reads with --------------------------------------------------------------------------------------


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    transformers.BertForMaskedLM(ARCHITECTURES["bert"]()).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no causal language model: what it says of a token depends on the tokens a"):
        sanitizing.language_model(tmp_path)


def test_a_model_without_a_language_head_is_refused(tmp_path: Path, base: Path) -> None:
    with pytest.raises(UsageError, match="is no causal language model: it lacks cls"):
        sanitizing.language_model(base)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_other_causal_models_can_read(architecture: str, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]()).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    [found] = Onion().inspect(TEXTS[:1], context(tmp_path))
    assert found[0] == pytest.approx(
        perplexity_by_loop(TEXTS[0], tmp_path) - perplexity_by_loop(TEXTS[0].partition(" ")[2], tmp_path), abs=1e-3
    )
