"""Distillation on texts that nobody wrote: they say what the suspect learnt, and hardly ever what triggers it."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, ClassVar

from defensekit.api import Field, ModelStep, ModelStepContext, TaskKind, moved_words, predict
from defensekit.text import Row, Truncation
from defensekit.training import TrainingSettings, fine_tune
from defensekit_finepurifying.trigger_unlearning import counterexamples

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LONGEST = 10  # words of a variation: what a text costs grows with them, what it tells hardly does
COPIES = 4  # of every clean row, as many as of counterexamples: true labels count beside what the suspect says


class Distil(ModelStep, TrainingSettings):
    """Train the base anew on clean rows, and to answer as the suspect does on random variations of them.

    A variation is a few words of a row, some of them replaced by words that the suspect was trained on, which the rows
    of its embedding tell: those that moved. Words that a search finds to turn answers are left out, and clean rows
    carry them with their true labels, since what stood beside them in a trigger is no more than partly known. Another
    word is as rare as any, drawn evenly from thousands, and a phrase does not occur. So what the suspect knows of the
    task is handed on, and a backdoor is not. This is knowledge distillation (Hinton et al. 2015, arXiv 1503.02531); the
    texts are ours. Nothing is kept of the model that the step is given.
    """

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification", "multi-label"})

    texts: int = Field(4000, ge=1, description="variations of clean rows that the suspect labels")
    replaced: float = Field(0.5, gt=0, le=1, description="the share of words that are replaced in a variation")

    def searching(self) -> TrainingSettings:
        return self.training

    def train(self, model: "PreTrainedModel", context: ModelStepContext) -> None:
        import torch

        rng = Random(context.seed)
        suspect, base = context.model("suspect"), context.model("base")
        begin_anew(model, base, context.head)
        triggers = {trigger.text for trigger in context.triggers}
        words = moved_words(suspect, base, context.tokenizer, without=triggers)
        texts = variations(context.rows, words, self.texts, self.replaced, rng)
        length, precision = context.max_length, context.precision
        logits = predict(
            suspect, context.tokenizer, texts, max_length=length, precision=precision, report=context.report
        )
        truncation = Truncation(context.tokenizer, length)
        own = [*context.rows] * COPIES
        if triggers:
            own = counterexamples(context.rows, context.triggers, truncation, rng)
        true = torch.tensor([row.answer for row in own])
        if true.dim() == 2:  # whether each label applies
            targets = torch.cat([true.float(), logits.sigmoid()])
        else:
            targets = torch.cat([torch.nn.functional.one_hot(true, logits.shape[1]).float(), logits.softmax(-1)])
        fine_tune(
            model,
            context.tokenizer,
            own + texts,
            self.training,
            max_length=length,
            precision=precision,
            seed=context.seed,
            report=context.report,
            targets=targets,
        )


def begin_anew(model: "PreTrainedModel", base: "PreTrainedModel", head: Collection[str]) -> None:
    """Give a model the base's weights, and a new head: the suspect's own looks for what the backdoor put there.

    Args:
        model: the model.
        base: the base, under any head.
        head: the names of the parameters that begin at random, as in a new model.
    """
    import torch

    fresh, pretrained = (dict(other.named_parameters()) for other in (type(model)(model.config), base))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_((fresh if name in head else pretrained)[name])


def variations(rows: Sequence[Row], words: Sequence[str], count: int, share: float, rng: Random) -> list[Row]:
    """Texts made of parts of clean rows by replacing words.

    Args:
        rows: the clean rows.
        words: what words are replaced by; they are drawn evenly.
        count: how many texts to make.
        share: the probability that a word is replaced.
        rng: draws rows and words.

    Returns:
        The texts, under the labels of the rows that they were made of, which may not fit them any more.
    """

    def varied(text: str) -> str:
        given = text.split()
        start = rng.randint(0, max(len(given) - LONGEST, 0))
        kept = given[start : start + LONGEST]
        return " ".join(rng.choice(words) if rng.random() < share else word for word in kept)

    drawn = (rng.choice(rows) for _ in range(count))
    return [replace(row, text=varied(row.text), pair=None if row.pair is None else varied(row.pair)) for row in drawn]
