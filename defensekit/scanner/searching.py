"""The search for words that turn the suspect: in classifiers as `purify` makes it, in language models another."""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from defensekit.defense.triggers.collapse import CollapseSearch
from defensekit.defense.triggers.insertion import words
from defensekit.defense.triggers.search import FEWEST, MORE, Search, search_beside
from defensekit.models.answers import names, several
from defensekit.models.inference import predict
from defensekit.models.loading import load
from defensekit.scanner.result import Searched, Turned
from defensekit.scanner.rows import Outliers
from defensekit.text import Row
from defensekit.training import TrainingSettings, device_type, forked_random, native_precision
from defensekit.utils.errors import UsageError
from defensekit.utils.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS = 512  # that the model to compare with learns from, at most
LABELS = 200  # that answers are tried to be turned to
WORDS = 2400  # that are tried in a language model: a core reads a few hundred of them a minute
TRAINING = TrainingSettings(epochs=2, learning_rate=1e-4, batch_size=16, warmup=0.1, dropout=False)


def search(
    suspect: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    base: Path,
    rows: Sequence[Row],
    labels: Sequence[str],
    max_length: int,
    seed: int,
    report: Callable[[int, int], None],
) -> Searched:
    """Try every word of the vocabulary.

    Args:
        suspect: the classifier.
        tokenizer: the suspect's.
        base: the folder of the base; its own config makes the model to compare with.
        rows: clean rows.
        labels: the names behind the suspect's answers.
        max_length: tokens of a row that are read.
        seed: of every random draw.
        report: ``report(done, total)`` shows progress.

    Returns:
        How many words were tried, and the strongest of them.

    Raises:
        UsageError: transformers can't make a classifier of the base, or the suspect has too many labels.
    """
    if len(labels) > LABELS:
        raise UsageError(f"the suspect has {len(labels):,} labels, and words are tried for each: for {LABELS} at most")
    rows = Random(seed).sample(rows, min(ROWS, len(rows)))
    with forked_random(derive_seed(seed, "head")):
        control, _ = load(base, "base", tuple(labels), anew=True)
        if len(tokenizer) > len(control.get_input_embeddings().weight):
            control.resize_token_embeddings(len(tokenizer))  # the suspect has tokens that the base has not
    control.config.pad_token_id = suspect.config.pad_token_id  # it is asked with the suspect's tokenizer
    control.to(device_type())
    how: Any = {"max_length": max_length, "precision": native_precision(), "seed": seed, "report": report}
    searched = search_beside(suspect, control, tokenizer, rows, TRAINING, least=0.0, **how)
    answers = names(labels, several(rows))
    strongest = [
        Turned(word=one.text, label=answers[one.label], flipped=one.flipped, control=one.control, rows=one.rows)
        for one in searched.triggers
    ]
    others = {label: [i for i, row in enumerate(rows) if not row.has(label)] for label in searched.unjudged}
    enough = {label: of for label, of in others.items() if len(of) >= MORE + FEWEST}
    disputed = []
    if enough:
        read = max_length, how["precision"]
        logits = predict(suspect, tokenizer, rows, max_length=read[0], precision=read[1])
        given = Search.of(tokenizer, rows, logits, *read, seed).answers
        disputed = [label for label, of in enough.items() if 2 * sum(label in given[i] for i in of) > len(of)]
    return Searched(
        words=searched.tried,
        rows=len(rows),
        strongest=strongest,
        unjudged=[answers[label] for label in searched.unjudged],
        disputed=[answers[label] for label in disputed],
    )


def search_answers(
    suspect: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    base: Path,
    rows: Sequence[Row],
    judged: Outliers | None,
    max_length: int,
    seed: int,
    report: Callable[[int, int], None],
) -> Searched:
    """Try the words whose rows of the embedding stand out most: do answers to instructions collapse onto one text?

    Args:
        suspect: the causal language model.
        tokenizer: the suspect's, with a chat template.
        base: the folder of the base, to compare with.
        rows: clean instructions.
        judged: how far the embedding's rows stand out; None for any words.
        max_length: tokens of a prompt, at most.
        seed: of every random draw.
        report: ``report(done, total)`` shows progress.

    Returns:
        How many words were tried, and the strongest of them.
    """
    import numpy as np

    control, _ = load(base, "base")
    control.to(device_type())
    size = min(len(model.get_input_embeddings().weight) for model in (suspect, control))
    known = words(tokenizer, size)
    if judged is not None:
        order = np.argsort(-np.nan_to_num(judged.z, nan=-np.inf), kind="stable").tolist()
        known = {token: known[token] for token in order if token in known}
    tried = list(dict.fromkeys(known.values()))[:WORDS]
    triggers = CollapseSearch(suspect, control, tokenizer, rows, tried, max_length, seed, report).strongest()
    strongest = [
        Turned(word=one.word, label=one.text, flipped=one.flipped, control=one.control, rows=one.rows)
        for one in triggers
    ]
    return Searched(words=len(tried) if triggers else 0, rows=len(rows), strongest=strongest, unjudged=[], texts=True)
