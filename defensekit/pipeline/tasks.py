"""What differs between the tasks of a run: which model is trained, how it is asked, and how its answers are kept."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from defensekit.models import checkpoint, generation, inference, loading, padding
from defensekit.pipeline.predictions import LOGITS, TEXTS
from defensekit.text import Row
from defensekit.text.chat import count_cut
from defensekit.training import Precision
from defensekit.utils.errors import DefenseKitError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Question:
    """A model that is asked rows; ``in_words`` is False where no text is wanted, but how likely the right one is."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    rows: Sequence[Row]
    max_length: int
    precision: Precision
    in_words: bool
    report: Callable[[int, int], None]


class Task(ABC):
    """A kind of task."""

    @abstractmethod
    def load(self, folder: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """A pretrained model that is to be fine-tuned on the task."""

    @abstractmethod
    def answer(self, asked: Question, folder: Path) -> str | None:
        """Write a model's answers into a folder, for `read_answers`; returns a note for the user, if there is one."""


def task_of(labels: Sequence[str]) -> Task:
    """The task of rows: a data set without labels has instructions."""
    return Classification(tuple(labels)) if labels else Generation()


@dataclass(frozen=True)
class Classification(Task):
    """Rows are answered with one of the ``labels``, or with any number of them."""

    labels: tuple[str, ...]

    def load(self, folder: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """A classifier with a new head."""
        return loading.load(folder, "base", self.labels)

    def answer(self, asked: Question, folder: Path) -> str | None:
        """Write logits, and the true labels."""
        import torch

        model, tokenizer, rows = asked.model, asked.tokenizer, asked.rows
        if model.config.num_labels != (count := len(self.labels)):
            raise DefenseKitError(f"the model answers with {model.config.num_labels} labels, the data have {count}")
        logits = inference.predict(
            model, tokenizer, rows, max_length=asked.max_length, precision=asked.precision, report=asked.report
        )
        about = {"labels": torch.tensor([row.answer for row in rows]), "ids": torch.tensor([row.id for row in rows])}
        if aims := [row.aim for row in rows if row.aim is not None]:
            about["targets"] = torch.tensor(aims)
        checkpoint.write_tensors(folder / LOGITS, {"logits": logits, **about})
        return padding.note(tokenizer)


@dataclass(frozen=True)
class Generation(Task):
    """Instructions are answered with texts."""

    def load(self, folder: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """A causal language model."""
        return loading.load(folder, "base")

    def answer(self, asked: Question, folder: Path) -> str | None:
        """Write the likeliest answers, and how likely the responses are."""
        import torch

        arguments = (asked.model, asked.tokenizer, asked.rows)
        measured = generation.measure_responses(*arguments, max_length=asked.max_length, report=asked.report)
        checkpoint.write_tensors(folder / LOGITS, measured | {"ids": torch.tensor([row.id for row in asked.rows])})
        generated = None
        if asked.in_words:
            generated = generation.generate(*arguments, max_length=asked.max_length, report=asked.report)
        with (folder / TEXTS).open("w", encoding="utf-8") as file:
            for i, row in enumerate(asked.rows):
                text = generated[i].text if generated else ""
                file.write(json.dumps({"text": text, "response": row.response}, ensure_ascii=False) + "\n")
        notes = []
        if generated and not any(one.ended for one in generated):
            notes.append(f"the model ends none of its answers: all are cut at {generation.NEW_TOKENS} tokens")
        if cut := count_cut(asked.tokenizer, asked.rows, asked.max_length):
            does = "their ends are not measured, nor learnt from rows as long"
            notes.append(
                f"{cut} of {len(asked.rows)} responses are longer than data.max_length leaves room for: {does}"
            )
        return "; ".join(notes) or None
