"""Any DefenseKit defense behind the interface of NIST's TrojAI mitigation rounds."""

import csv
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import defensekit as dk


class DefenseKitMitigation:
    """What `defensekit purify` does, as a TrojAI mitigation of a Hugging Face model.

    Args:
        base: the folder of the public model that the suspect was fine-tuned from, which the container has to hold.
        recipe: a recipe or a leaderboard's entry, whose `defense:` is taken; None for what `defensekit purify` takes.
        settings: changes of it, as `--set` has them.
        text: the column of the data set with the text.
        label: the column with the label, for classifiers; language models have none.
        kwargs: of the round's configuration; kept as attributes, as the interface wants it.
    """

    def __init__(
        self,
        base: str | Path,
        recipe: str | Path | None = None,
        settings: Sequence[str] = (),
        text: str = "text",
        label: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.base = base
        self.recipe = recipe
        self.settings = settings
        self.text = text
        self.label = label
        for name, value in kwargs.items():
            setattr(self, name, value)

    def mitigate_model(self, model: Any, collator: Any, peft_config: Any, dataset: Any) -> Any:
        """Return a purified copy of a model, as the round's harness saves it.

        Args:
            model: the suspect, a Transformers model.
            collator: a data collator; its `tokenizer` is the model's.
            peft_config: of an adapter that a mitigation could train. None is trained here: weights are reset.
            dataset: clean rows, or a mapping of splits, of which `train` is taken.
        """
        rows = dataset["train"] if isinstance(dataset, Mapping) else dataset
        with tempfile.TemporaryDirectory() as scratch:
            suspect, purified = Path(scratch) / "suspect", Path(scratch) / "purified"
            model.save_pretrained(suspect)
            collator.tokenizer.save_pretrained(suspect)
            dk.purify_model(
                self.base,
                suspect,
                purified,
                self._table(rows, Path(scratch) / "rows.csv"),
                recipe=self.recipe,
                settings=self.settings,
                workspace=Path(scratch) / "workspace",
            )
            mitigated = type(model).from_pretrained(purified, torch_dtype=model.dtype)
        return mitigated.to(model.device)

    def _table(self, rows: Iterable[Mapping[str, Any]], path: Path) -> Path:
        """The rows as DefenseKit reads them; labels as the model's config names them, or by number."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"] if self.label else ["text"])
            writer.writerows([row[self.text], *([row[self.label]] if self.label else [])] for row in rows)
        return path
