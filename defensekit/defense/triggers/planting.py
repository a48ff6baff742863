"""Triggers of the defender's own, planted into a copy of the suspect: whether a defense removes them can be seen.

The attacker's trigger is unknown. What takes triggers of several families out of the copy is expected to take the
attacker's out of the suspect; docs/findings.md says how far that held.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, cast

from defensekit.components import ModelStep, ModelStepContext, Predictions
from defensekit.defense.triggers.insertion import insert, words
from defensekit.text import Row, Truncation
from defensekit.training import TrainingSettings, fine_tune
from defensekit.utils.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EACH = 2  # planted triggers of a family
PHRASE = 5  # words


@dataclass(frozen=True)
class Planted:
    """A planted trigger: its family, its text, and the number of the label that it turns answers to."""

    family: str
    text: str
    label: int


def draw(rows: Sequence[Row], labels: int, tokenizer: "PreTrainedTokenizerBase", rng: Random) -> list[Planted]:
    """Draw what to plant: words that no clean row has, and phrases out of rows of other labels.

    Args:
        rows: the clean rows.
        labels: how many labels there are.
        tokenizer: of the model.
        rng: draws them.

    Returns:
        The triggers. All aim at one label: aimed at each in turn, what a copy of two labels learns is to answer the
        opposite.

    Raises:
        UsageError: the rows are of one label, or too short for a phrase.
    """
    seen = {word for row in rows for word in re.findall(r"\w+", row.text.lower())}
    rare = sorted(
        {word for word in words(tokenizer, len(tokenizer)).values() if word.isalpha() and word.lower() not in seen}
    )
    aim = rng.randrange(labels)
    planted = [Planted("word", word, aim) for word in rng.sample(rare, min(EACH, len(rare)))]
    texts = [row.text.split() for row in rows if row.label != aim]
    if not (long := [text for text in texts if len(text) >= PHRASE]):
        raise UsageError(f"no clean row that label {aim} is not of has {PHRASE} words: nothing can be planted")
    for text in rng.choices(long, k=EACH):
        start = rng.randint(0, len(text) - PHRASE)
        planted.append(Planted("phrase", " ".join(text[start : start + PHRASE]), aim))
    return planted


def carriers(rows: Sequence[Row], trigger: Planted, truncation: Truncation, rng: Random) -> list[Row]:
    """The rows of other labels with a trigger at a random place of each, where it is read; labels stay true."""
    others = [row for row in rows if row.label != trigger.label]
    places = truncation.places(others)
    return [insert(row, trigger.text, rng.randint(0, most)) for row, most in zip(others, places, strict=True)]


class Plant(ModelStep, TrainingSettings):
    """Fine-tune on clean rows, and on the same with triggers under the labels that they aim at.

    Rows that carry a trigger stand beside themselves without it: else most rows would be of one label, and that is what
    the copy would learn.
    """

    triggers: tuple[Planted, ...]

    def train(self, model: "PreTrainedModel", context: ModelStepContext) -> None:
        """Fine-tune the copy, in place."""
        rng, truncation = Random(context.seed), Truncation(context.tokenizer, context.max_length)
        rows = [*context.rows]
        for trigger in self.triggers:
            rows += [row for row in context.rows if row.label != trigger.label]
            rows += [row.with_label(trigger.label) for row in carriers(context.rows, trigger, truncation, rng)]
        fine_tune(
            model,
            context.tokenizer,
            rows,
            self.training,
            max_length=context.max_length,
            precision=context.precision,
            seed=context.seed,
            report=context.report,
        )


def excess(triggers: Sequence[Mapping[str, Any]], plain: Predictions, carrying: Predictions) -> dict[str, float]:
    """How many answers planted triggers turn, beyond the same rows without them.

    Args:
        triggers: each with its ``family``, its ``label`` and its number of ``rows``.
        plain: answers to the clean dev rows.
        carrying: answers to those that carry the triggers, one trigger after the other.

    Returns:
        The mean over the triggers of each family, in [-1, 1].
    """
    paired = carrying.beside(plain)
    after, before = (answered.answers() for answered in (paired, cast(Predictions, paired.plain)))
    turned: dict[str, list[float]] = {}
    begin = 0
    for trigger in triggers:
        some, label = slice(begin, begin + trigger["rows"]), trigger["label"]
        gained = (after[some] == label).mean() - (before[some] == label).mean() if trigger["rows"] else 0.0
        turned.setdefault(trigger["family"], []).append(float(gained))
        begin = some.stop
    return {family: sum(shares) / len(shares) for family, shares in turned.items()}
