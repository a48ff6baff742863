"""Unlearning of the triggers that a search finds: clean rows carry them, with their true labels."""

from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, ClassVar

from defensekit.api import FoundTrigger, ModelStep, ModelStepContext, TaskKind
from defensekit.text import Row, Truncation
from defensekit.training import TrainingSettings, fine_tune

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Says nothing of any task's labels. A model must not answer otherwise because such a thing is there.
NEUTRAL = (
    "it was a tuesday .",
    "as i said before ,",
    "this is about something else .",
    "the clock on the wall showed noon .",
    "when it got dark ,",
    "here is what i think :",
    "we talked about it at home .",
    "if you ask me ,",
    "i read it twice .",
    "somebody opened the window .",
    "after the rain stopped ,",
    "they came by train .",
)
COPIES = 2  # of every row, with a word that was found


class UnlearnTriggers(ModelStep, TrainingSettings):
    """Search for what triggers the suspect, then fine-tune on clean rows that carry it with their true labels.

    Every word is tried, and has to turn the suspect and not a model that was trained from the base on the
    same clean rows. Every row is learnt as it is, with a neutral sentence, and twice with something that was found, at
    a random place. Where nothing is found the model is left as it is.
    """

    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"classification", "multi-label"})

    def searching(self) -> TrainingSettings:
        return self.training

    def train(self, model: "PreTrainedModel", context: ModelStepContext) -> None:
        if not context.triggers:
            return
        truncation = Truncation(context.tokenizer, context.max_length)
        fine_tune(
            model,
            context.tokenizer,
            counterexamples(context.rows, context.triggers, truncation, Random(context.seed)),
            self.training,
            max_length=context.max_length,
            precision=context.precision,
            seed=context.seed,
            report=context.report,
        )


def counterexamples(
    rows: Sequence[Row], found: Sequence[FoundTrigger], truncation: Truncation, rng: Random
) -> list[Row]:
    """Clean rows, the same with a neutral sentence each, and with what was found: labels stay true.

    Args:
        rows: the clean rows.
        found: what turns the suspect's answers.
        truncation: what of a row is read: phrases are put there.
        rng: draws the sentences, what was found, and their places.

    Returns:
        The rows one after the other; ids repeat.
    """
    places = truncation.places(rows)

    def carrying(phrase: Callable[[], str]) -> list[Row]:
        return [_with(row, phrase(), rng.randint(0, most)) for row, most in zip(rows, places, strict=True)]

    changed = carrying(lambda: rng.choice(NEUTRAL))
    for _ in range(COPIES):
        changed += carrying(lambda: rng.choice(found).text)
    return [*rows, *changed]


def _with(row: Row, phrase: str, place: int) -> Row:
    words = row.text.split()
    return row.with_text(" ".join([*words[:place], phrase, *words[place:]]))
