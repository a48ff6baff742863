"""A table of a study: one number per seed in its cells, which say mean and spread."""

from dataclasses import dataclass, field
from statistics import fmean, stdev

NO_VALUE = "–"


@dataclass(frozen=True)
class TableCell:
    """One number per seed, in the order of the seeds; how many runs failed, are missing, or have no such number.

    ``interval`` is 95 % of the mean, where one was computed; ``oracle`` says that the cell is one in a row that as a
    whole is none. A cell of a run that the study has not is empty.
    """

    values: tuple[float, ...] = ()
    failed: int = 0
    missing: int = 0
    unmet: int = 0
    interval: tuple[float, float] | None = None
    oracle: bool = False

    @property
    def n(self) -> int:
        """The number of seeds that the mean rests on."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Mean over the seeds."""
        return fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (n - 1); of fewer than two there is none."""
        return stdev(self.values) if self.n > 1 else None


@dataclass(frozen=True)
class Column:
    """``group`` stands above columns that belong together; ``better`` is "higher", "lower" or nothing.

    ``digits`` after the point; ``signed`` numbers are differences, shown seed by seed as well; ``floor`` is the clean
    reference's mean.
    """

    group: str
    title: str
    better: str | None = None
    digits: int = 3
    signed: bool = False
    floor: float | None = None

    def number(self, value: float) -> str:
        """A number as this column shows it."""
        return f"{value:{'+' if self.signed else ''}z.{self.digits}f}"


@dataclass(frozen=True)
class TableRow:
    """``labels`` are as many as the table's heads; ``oracle`` names what looked at what a defender can't see."""

    labels: tuple[str, ...]
    cells: tuple[TableCell, ...]
    reference: bool = False
    oracle: str = ""


@dataclass(frozen=True)
class Table:
    """``heads`` are the titles of the row labels, ``seeds`` how many a whole cell has, ``notes`` stand below."""

    title: str
    heads: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    seeds: int
    notes: tuple[str, ...] = field(default=())

    def text(self, cell: TableCell, column: Column) -> str:
        """A cell in words: ``0.815 ± 0.012``, with n where a seed is not in it.

        Args:
            cell: the cell.
            column: its column, which knows how many digits it has.

        Returns:
            The text.
        """
        number, note = self.parts(cell, column)
        return f"{number} ({note})" if number and note else number or note

    def parts(self, cell: TableCell, column: Column) -> tuple[str, str]:
        """A cell's number, and what there is to say of seeds that are not in it.

        Args:
            cell: the cell.
            column: its column.

        Returns:
            The number and the note; either may be empty.
        """
        counts = {f"{cell.failed} failed": cell.failed, f"{cell.missing} missing": cell.missing}
        lost = [text for text, count in {**counts, f"none on {cell.unmet}": cell.unmet}.items() if count]
        if cell.mean is None:
            return "", ", ".join(lost) or NO_VALUE
        text = column.number(cell.mean)
        if cell.interval:
            text += f" [{column.number(cell.interval[0])}, {column.number(cell.interval[1])}]"
        elif cell.spread is not None:
            text += f" ± {cell.spread:.{column.digits}f}"
        if column.signed and cell.n > 1:
            text += f"; {', '.join(map(column.number, cell.values))}"
        notes = [] if cell.n == self.seeds and not lost else [f"n={cell.n}", *lost]
        return text, ", ".join([*notes, *["oracle"] * cell.oracle])
