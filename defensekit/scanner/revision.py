"""Whether a suspect came from this base, or from another revision of it.

Fine-tuning moves a matrix by some percent of its norm, and of an embedding the rows whose tokens its texts have.
Another revision differs everywhere: in larger steps, or in the rows of tokens that no text of a task has.
"""

from collections.abc import Callable

from defensekit.models.aligned import Aligned
from defensekit.models.checkpoint import CLASSIFIER
from defensekit.models.skeleton import task_of
from defensekit.scanner import drift
from defensekit.scanner.result import TensorDrift
from defensekit.scanner.rows import RowDrift

# Set by benchmarks/revision.py; docs/purify.md has the measurements and their limits.
INNER = 0.2
ROWS = 0.99
FEWEST_ROWS = 1000  # of a smaller vocabulary the texts of a task may have every token


def embedding_of(models: Aligned) -> RowDrift | None:
    """A collector for the rows of the token embedding: the longest tensor that is an embedding of tokens."""
    longest = max(filter(drift.is_of_tokens, models.compared), key=models.rows, default=None)
    if longest is None:
        return None
    entry = models.suspect.tensors[models.own_name(longest)]
    return RowDrift(longest, entry.dtype, min(models.rows(longest)))


def moved_rows(embedding: RowDrift | None) -> float:
    """The share of rows that moved by more than weight decay and rounding."""
    return float((embedding.drift > 0).mean()) if embedding is not None and embedding.rows else 0.0


def doubt(models: Aligned, tensors: list[TensorDrift], embedding: RowDrift | None) -> str | None:
    """The evidence for another revision, as a sentence; None where there is none.

    Rows are no evidence for language models: where the output is tied to the embedding, every step moves them all.
    """
    end = "so the base may be of another revision than the one that the suspect was fine-tuned from"
    if (inner := drift.inner_drift(tensors)) > INNER:
        return (
            f"half of the matrices drifted by {inner:.0%} of their norm or more, further than fine-tuning goes; {end}"
        )
    if embedding is None or embedding.rows < FEWEST_ROWS or task_of(models.suspect) != CLASSIFIER:
        return None
    if (share := moved_rows(embedding)) >= ROWS:
        return f"{share:.1%} of the embedding's rows moved, those of tokens that no text has among them; {end}"
    return None


def look(models: Aligned, report: Callable[[int, int], None] = lambda done, total: None) -> str | None:
    """Apply `doubt` to two models, in one pass over their files."""
    embedding = embedding_of(models)
    tensors = drift.measure(models, [embedding.look] if embedding else [], report)
    return doubt(models, tensors, embedding)
