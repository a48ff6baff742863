"""The board as data: a row with all that is known of it as JSON, rows and cells as CSV."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from defensekit.leaderboard.scores import Scores
from defensekit.leaderboard.table import TrackTable
from defensekit.leaderboard.ties import Standing
from defensekit.studies.frame import csv_cell


def files(tables: Sequence[TrackTable]) -> dict[str, bytes]:
    """The contents of ``board.json``, ``board.csv`` and ``cells.csv``, by their names."""
    rows = [(table, one) for table in tables for one in table.standings.rows]
    lines = ",\n".join(json.dumps(_record(*row), ensure_ascii=False) for row in rows)
    return {
        "board.json": f"[\n{lines}\n]\n".encode(),
        "board.csv": _csv([table.record(one) for table, one in rows]),
        "cells.csv": _csv([cell for row in rows for cell in _every_cell(*row)]),
    }


def _record(table: TrackTable, standing: Standing) -> dict[str, Any]:
    scores = standing.scores
    keys = scores.row.entry.keys
    return {
        **table.record(standing),
        "entry": keys.model_dump(include={"about", "authors", "links", "licence", "needs", "chosen_by"}),
        "cells": _measured(scores),
        "attempts": [
            {
                "attack": one.attack.name,
                "title": one.attack.keys.title,
                "left": one.left,
                "left_low": one.interval[0],
                "left_high": one.interval[1],
                "worst_of_track": one.worst,
                "lowers": one.lowers,
                "badge": one.tried.badge(table.host),
                "cells": _measured(one.tried),
            }
            for one in table.attempts_at(scores.name)
        ],
        "verifications": [
            {**one.model_dump(exclude={"schema_version", "row"}), "of_the_row_as_it_is": one in scores.row.verified}
            for one in scores.row.verifications
        ],
    }


def _cells(scores: Scores) -> Iterator[dict[str, Any]]:
    for cell in sorted(scores.row.cells):
        numbers = {name: value if value is None else round(value, 6) for name, value in scores.of_cell(cell).items()}
        yield {"attack": cell[0], "seed": cell[1], **numbers}


def _measured(scores: Scores) -> list[dict[str, Any]]:
    """A row's cells, each with what was measured there."""
    return [{name: value for name, value in cell.items() if value is not None} for cell in _cells(scores)]


def _every_cell(table: TrackTable, standing: Standing) -> Iterator[dict[str, Any]]:
    """A row's cells, and those of the attacks that were tried on it."""
    for scores in (standing.scores, *(one.tried for one in table.attempts_at(standing.scores.name))):
        for cell in _cells(scores):
            yield {"track": table.track.name, "name": scores.name, "submitted": scores.track.attack is not None, **cell}


def _csv(records: Sequence[Mapping[str, Any]]) -> bytes:
    """A table with a heading; no cell of it is a formula."""
    text = io.StringIO()
    lines = csv.DictWriter(text, list(records[0]), lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    lines.writeheader()
    for record in records:
        lines.writerow({key: csv_cell(value) if isinstance(value, str) else value for key, value in record.items()})
    return text.getvalue().encode()
