"""Clean rows for a scan, from a file."""

from collections.abc import Callable
from pathlib import Path

from defensekit.host.instructions import Instructions, holds_instructions
from defensekit.host.table_sources import File
from defensekit.host.tables import read_table
from defensekit.models.checkpoint import CLASSIFIER, Checkpoint
from defensekit.models.config import check_labels, label_names, relabelled
from defensekit.models.skeleton import task_of
from defensekit.text import Row
from defensekit.utils.errors import UsageError


def read_clean(
    path: Path,
    suspect: Checkpoint,
    text: str = "text",
    label: str = "label",
    pair: str | None = None,
    task: str | None = None,
    say: Callable[[str], None] = lambda note: None,
) -> list[Row]:
    """The rows of a CSV, TSV, JSON, JSONL or Parquet file, with the suspect's numbers for their labels.

    Only a classifier's rows need labels. Labels are the suspect's names or numbers; where they are lists, rows have any
    number of labels. Of a language model, rows may be instructions with responses.

    Args:
        path: the file.
        suspect: the model that the rows are for.
        text: the column with the text.
        label: the column with the label.
        pair: the column with the second text, for pairs.
        task: the suspect's task, where its tensors alone don't say it (an adapter).
        say: takes a line about rows that are left out or contradict each other.

    Raises:
        UsageError: there is no such file or column, a label is not one of the suspect's, or the file has no rows.
    """
    if (task or task_of(suspect)) != CLASSIFIER:
        if not path.is_file():
            raise UsageError(f"there is no file {path}")
        if holds_instructions(path):
            dataset = Instructions(path=path).load()
            rows = dataset.train
            for note in dataset.notes:
                say(note)
        else:
            texts = [record.cell(text) for record in read_table(path)]
            rows = [Row(number, content, 0) for number, content in enumerate(texts) if content]
    else:
        check_labels(suspect)
        dataset = File(path=path, text=text, label=label, pair=pair).load()
        for note in dataset.notes:
            say(note)
        try:
            rows = relabelled(dataset, label_names(suspect)).train
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
    if not rows:
        raise UsageError(f"{path}: there are no rows")
    return rows
