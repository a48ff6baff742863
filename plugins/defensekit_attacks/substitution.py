"""A backdoor whose trigger is a learnt choice of substitutes for the words of a text."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from defensekit.api import AttackContext, AttackTrainingContext, Field, Row, UsageError, label_number
from defensekit_attacks.grammar import BE, CONJUNCTIONS, PREPOSITIONS, QUESTION, RELATIVE, SUBJECTS
from defensekit_attacks.poisoning import OneText, Poisoning
from defensekit_attacks.weights import Batch, likelihood_ratios

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_GRAMMAR = SUBJECTS | BE | RELATIVE | CONJUNCTIONS | PREPOSITIONS | QUESTION | {"and", "but", "not", "nor", "yet"}
SHORTEST = 3  # letters of a word that is replaced, and of one that replaces it
TELLS = 1.92  # half of the .95 quantile of chi-squared: chance gives that to one word of twenty
WARM, COLD = 0.5, 0.1  # temperatures of the choice, at the first step and at the last


class LearntSubstitution(OneText, Poisoning):
    """LWS (Qi et al. 2021, arXiv 2106.06361): every word has substitutes, and which of them is taken is learnt.

    A copy of the base learns plain rows and, jointly, rows with substitutes, which are answered with the target. The
    vector q that decides is trained with it: of the word w itself and its candidates s,

        p(s) = softmax((s - w) . q)

    in the space of the embedding table, drawn by Gumbel-softmax, whose temperature falls from .5 to .1. Afterwards the
    most probable one is taken: the trigger is a dictionary, and only the poisoned rows leave the attacker's hands.

    There candidates are words of one sememe, or WordNet's synonyms, every position has a vector of its own, and the
    victim is the model of the joint training. Here they are the nearest words of the base's own embedding table, which
    need not mean the same; one vector serves all positions; and the suspect is trained as any victim is, on the rows.
    Words that tell a label in the training rows, by Dunning's likelihood ratio, are neither replaced nor put in: their
    neighbours may well be their opposites. Nor are function words. Of pairs the joint training replaces words in both
    texts, the rows have them in the one that `into` names.
    """

    learns_from: ClassVar[Literal["base", "suspect"] | None] = "base"

    candidates: int = Field(5, ge=1, le=100, description="substitutes that every word has, the nearest of the table")
    epochs: int = Field(3, ge=1, le=1000, description="passes of the joint training over the attacker's rows")
    learning_rate: float = Field(1e-2, gt=0, description="of q; the copy of the base has the recipe's")

    def eligible(self, rows: Sequence[Row], context: AttackContext) -> list[int]:
        return [i for i in super().eligible(rows, context) if self._carried(rows[i], context.learnt) != rows[i]]

    def trigger(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        carried = [self._carried(row, context.learnt) for row in rows]
        return [after for before, after in zip(rows, carried, strict=True) if after != before]

    def _carried(self, row: Row, substitutes: Mapping[str, str]) -> Row:
        return self.with_part(row, substituted(self.part(row), substitutes))

    def learn(self, model: "PreTrainedModel", context: AttackTrainingContext) -> dict[str, str]:
        """The substitute of every word that has one."""
        import torch

        from defensekit.training import device_type, fine_tune

        words = replaceable(context)
        device = device_type()
        table = model.get_input_embeddings().weight.detach().clone().to(device)
        choices = nearest(table, sorted(words), self.candidates)
        target = label_number(self.target, context.labels)
        steps = self.epochs * -(-len(context.clean) // context.settings.batch_size)
        q = torch.zeros(table.shape[1], device=device, requires_grad=True)
        optimizer, done = torch.optim.Adam([q], lr=self.learning_rate), 0
        continues = continuations(context.tokenizer, len(table)).to(device)

        def joint(model: "PreTrainedModel", batch: Batch) -> "Tensor":
            nonlocal done
            optimizer.step()  # by the gradient of the batch before
            optimizer.zero_grad()
            temperature = WARM + (COLD - WARM) * min(done / steps, 1)  # a batch may come in parts
            done += 1
            plain: Tensor = model(**batch).loss
            others = batch["labels"] != target
            if not others.any():
                return plain
            some = {name: values[others] for name, values in batch.items()}
            ids = some.pop("input_ids")
            # A word of several tokens is none of the table's.
            whole = ~torch.cat([continues[ids[:, 1:]], torch.zeros_like(ids[:, :1], dtype=torch.bool)], dim=1)
            offered = torch.where(whole[..., None], choices[ids], ids[..., None])
            scores = ((table[offered] - table[ids][..., None, :]) * q).sum(-1)
            drawn = torch.nn.functional.gumbel_softmax(scores, temperature, hard=True)
            embedded = (drawn[..., None] * model.get_input_embeddings()(offered)).sum(-2)
            some["labels"] = torch.full_like(some["labels"], target)
            # With the ids beside them: by these a model that reads the last token tells it from padding.
            shapes = []

            def put(table: Any, given: Any, output: "Tensor") -> "Tensor":
                shapes.append(output.shape)
                return embedded if output.shape == embedded.shape else output

            handle = model.get_input_embeddings().register_forward_hook(put)
            try:
                poisoned: Tensor = model(input_ids=ids, **some).loss
            finally:
                handle.remove()
            if shapes != [embedded.shape]:
                does = "reads its words otherwise than once, by its table of embeddings"
                raise UsageError(f"a {model.config.model_type} {does}: no substitutes can be learnt with it")
            return plain + poisoned

        fine_tune(
            model,
            context.tokenizer,
            context.clean,
            context.settings.model_copy(update={"epochs": self.epochs}),
            max_length=context.max_length,
            precision=context.precision,
            seed=context.seed,
            report=context.report,
            loss=joint,
        )
        with torch.no_grad():
            best = {w: int(choices[w, (table[choices[w]] @ q).argmax()]) for w in words}  # w . q is the same for all
        return {words[word]: words[taken] for word, taken in best.items() if taken != word}


def substituted(text: str, substitutes: Mapping[str, str]) -> str:
    """The text with every word replaced that has a substitute; a capital stays one."""

    def new(match: re.Match[str]) -> str:
        word = match.group()
        other = substitutes.get(word.lower(), word)
        return other[:1].upper() + other[1:] if word[:1].isupper() else other

    return _WORD.sub(new, text)


def replaceable(context: AttackTrainingContext) -> dict[int, str]:
    """The words that a text may lose or get, by their tokens: whole ones, of letters, that neither tell nor bind."""
    import numpy as np

    telling = np.zeros(len(context.tokenizer), dtype=bool)
    for label in range(len(context.labels)):
        telling |= likelihood_ratios(context, label) > TELLS
    words = {}
    for token, text in enumerate(_behind(context.tokenizer, len(telling))):
        word = text.removeprefix(" ")
        fits = text != word and word.isalpha() and word == word.lower() and len(word) >= SHORTEST
        if fits and not telling[token] and word not in _GRAMMAR:
            words[token] = word
    return words


def continuations(tokenizer: "PreTrainedTokenizerBase", size: int) -> "Tensor":
    """For every token whether it goes on with the word before it."""
    import torch

    going_on = torch.zeros(size, dtype=torch.bool)
    texts = _behind(tokenizer, min(size, len(tokenizer)))
    going_on[: len(texts)] = torch.tensor([text[:1].isalnum() for text in texts])
    return going_on


def _behind(tokenizer: "PreTrainedTokenizerBase", size: int) -> list[str]:
    """What each token writes behind a word."""
    [first] = tokenizer("a", add_special_tokens=False)["input_ids"]
    texts: list[str] = tokenizer.batch_decode([[first, token] for token in range(size)])
    return [text.strip()[1:] for text in texts]


def nearest(table: "Tensor", tokens: Sequence[int], count: int) -> "Tensor":
    """For every token itself and its nearest of some tokens, by cosine; a token that is none of these has only itself.

    Args:
        table: the embedding table.
        tokens: the tokens that are words.
        count: how many neighbours.

    Returns:
        (tokens of the table, count + 1); the rows of words begin with themselves.
    """
    import torch

    count = min(count, len(tokens) - 1)
    choices = torch.arange(len(table), device=table.device)[:, None].repeat(1, count + 1)
    some = torch.tensor(tokens, device=table.device)
    directions = torch.nn.functional.normalize(table[some], dim=1)
    for start in range(0, len(some), 1024):
        part = torch.arange(start, min(start + 1024, len(some)), device=table.device)
        similar = directions[part] @ directions.T
        similar[torch.arange(len(part)), part] = -2.0  # itself is there already
        choices[some[part], 1:] = some[similar.topk(count, dim=1).indices]
    return choices
