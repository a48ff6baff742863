"""Clean rows are read with the suspect's labels."""

from pathlib import Path

import pytest

from defensekit.models.checkpoint import Checkpoint
from defensekit.scanner.clean import read_clean
from defensekit.utils.errors import UsageError
from tests.conftest import write_table


def test_clean_rows_have_the_suspect_s_numbers(clean: Path, tmp_path: Path) -> None:
    suspect = Checkpoint(clean)
    table = write_table(tmp_path / "rows.csv", [("good", "positive"), ("bad", "negative")])
    assert [(row.text, row.label) for row in read_clean(table, suspect)] == [("good", 1), ("bad", 0)]
    numbered = write_table(tmp_path / "numbers.csv", [("good", "1"), ("bad", "0")])
    assert [row.label for row in read_clean(numbered, suspect)] == [1, 0]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([("good", "fine"), ("bad", "negative")], {}, "no label 'fine'"),
        ([("good", "positive")], {"text": "txt"}, "no column 'txt'. Did you mean 'text'"),
        ([], {}, "no rows"),
    ],
)
def test_clean_rows_that_don_t_fit(
    clean: Path, tmp_path: Path, rows: list[tuple[str, str]], columns: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_clean(write_table(tmp_path / "rows.csv", rows), Checkpoint(clean), **columns)
