"""The board as a static site: tables, a page per defense, and the same as JSON and CSV. Nothing is fetched."""

import base64
import csv
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import compress
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from defensekit.leaderboard.attacking import Attempt, attempts_on
from defensekit.leaderboard.entries import OURS, Attack
from defensekit.leaderboard.keys import UNPOISONED
from defensekit.leaderboard.redraw import interval, redrawn
from defensekit.leaderboard.scores import ACC, ASR, BACC, EXCESS, FAILED, PACC, RETUNED, Scores, scores_in
from defensekit.leaderboard.ties import Standing, Standings, standings
from defensekit.leaderboard.tracks import Track, names
from defensekit.recipe import yaml_document
from defensekit.result.plots import COLOURS, MARKS, canvas, image
from defensekit.studies.frame import csv_cell
from defensekit.utils.errors import UsageError
from defensekit.utils.files import atomic_write
from defensekit.utils.html import fill

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RETUNING = "after the attacker trained it on {} poisoned rows; small: a model that was never poisoned, after the same"

# Every column of numbers: its title, what it is, and how it is written. Lower is better but where it says otherwise.
COLUMNS: dict[str, tuple[str, str, str]] = {
    "excess_asr": ("excess ASR", "triggered rows answered with the target, less the same rows without trigger", ".3f"),
    "excess_asr_worst": ("worst attack", "the excess ASR of the attack that is left most of", ".3f"),
    "acc_lost": ("ACC lost", "accuracy of the suspect less that of the defended model", ".3f"),
    "harm": ("harm", "ACC lost by a suspect that was never poisoned", ".3f"),
    "asr": ("ASR", "triggered rows answered with the target", ".3f"),
    "asr_clean": ("clean ASR", "the ASR of the clean reference, which is all that can be reached", ".3f"),
    **{
        f"asr_retuned_{rows}": (f"ASR, {rows} rows", RETUNING.format(rows), ".3f")
        for rows in RETUNED
    },
    "pacc": ("PACC ↑", "triggered rows answered right; higher is better", ".3f"),
    "bacc": ("BACC ↑", "accuracy on rows with the pattern of a bias; higher is better", ".3f"),
    "fidelity": ("fidelity ↑", "NIST's: the share of the ASR that is gone, times the share of ACC that is left", ".3f"),
    "seconds": ("seconds", "all that the defense computed for one suspect, on the machine of the row", ".0f"),
    "memory_mib": ("MiB", "of memory, at the peak of making the model", ",.0f"),
    "labelled_rows": ("labelled rows", "clean rows with labels that it was handed", ".0f"),
}  # fmt: skip


@dataclass(frozen=True)
class TrackTable:
    """A track and its rows, as they stand; ``host`` is the keeper, whose verifications count as the host's."""

    track: Track
    standings: Standings
    host: str | None
    attempts: Sequence[Attempt]  # of submitted attacks

    def attempts_at(self, name: str) -> list[Attempt]:
        """Those on a row; those that lower it first."""
        return sorted((one for one in self.attempts if one.tried.name == name), key=lambda one: not one.lowers)

    @property
    def submitted(self) -> dict[str, Attack]:
        """The attacks that were submitted, by name."""
        return {one.attack.name: one.attack for one in self.attempts}

    @cached_property
    def columns(self) -> dict[str, tuple[str, str, str]]:
        """The columns that some row has a number in."""
        numbers = [one.scores.numbers() for one in self.standings.rows]
        return {name: column for name, column in COLUMNS.items() if any(one[name] is not None for one in numbers)}

    def record(self, standing: Standing) -> dict[str, Any]:
        """A row as plain data."""
        scores, keys = standing.scores, standing.scores.row.entry.keys
        return {
            "track": self.track.name,
            "name": scores.name,
            "title": keys.title,
            "group": letters(standing.group),
            **scores.numbers(),
            **{
                f"asr_clean_retuned_{rows}": scores.mean(
                    partial(scores.retuned, rows, model="clean"), self.track.keys.attacks
                )
                for rows in RETUNED
            },
            "excess_asr_low": standing.interval[0],
            "excess_asr_high": standing.interval[1],
            "needs": ", ".join(keys.needs) or "nothing",
            "badge": scores.badge(self.host),
            "baseline": keys.baseline,
            "of_one_answer": len(scores.of_one_answer),
            "no_better_than": ", ".join(standing.no_better_than),
            "lowered_by": ", ".join(one.attack.name for one in self.attempts_at(scores.name) if one.lowers),
        }


def build(places: Sequence[Path], out: Path, tracks: Sequence[str] = (), host: str | None = None) -> Path:
    """Check rows, and write the site.

    Args:
        places: rows, or folders of rows.
        out: the site's folder.
        tracks: the files of tracks that are not shipped.
        host: the keeper, as verifications name him.

    Returns:
        The path of the page.

    Raises:
        DefenseKitError: a row is not right, there are two of one name, or an attack was tried on none of the rows.
    """
    by_track = scores_in(places, tracks)
    on_tracks = [list(rows.values()) for rows in by_track.values()]
    for [first, *_] in on_tracks:
        if first.track.of and first.track.of.name not in by_track:
            raise UsageError(f"{first.row.folder}: there is no row of {first.name} on {first.track.of.name}")
    tables = [
        TrackTable(rows[0].track, standings(rows), host, attempts_on(rows[0].track, by_track))
        for rows in on_tracks
        if not rows[0].track.of
    ]
    write(tables, out)
    return out / "index.html"


def write(tables: Sequence[TrackTable], out: Path) -> None:
    """Write the pages, ``board.json`` and ``board.csv``."""
    records = [table.record(one) for table in tables for one in table.standings.rows]
    atomic_write(out / "index.html", board(tables).encode())
    for table in tables:
        for one in table.standings.rows:
            atomic_write(out / table.track.name / f"{one.scores.name}.html", card(table, one).encode())
        for name in (*table.track.attacks, *table.submitted):
            atomic_write(out / table.track.name / f"attacks/{name}.html", attack_page(table, name).encode())
    atomic_write(out / "board.json", (json.dumps(records, indent=1, ensure_ascii=False) + "\n").encode())
    text = io.StringIO()
    lines = csv.DictWriter(text, list(records[0]), lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    lines.writeheader()
    for record in records:
        lines.writerow({key: csv_cell(value) if isinstance(value, str) else value for key, value in record.items()})
    atomic_write(out / "board.csv", text.getvalue().encode())


def board(tables: Sequence[TrackTable]) -> str:
    """The page of tables. Every text that comes from a row is escaped; the one script on it is ours, by its digest."""
    from markupsafe import Markup

    script = (Path(__file__).parent / "sort.js").read_text(encoding="utf-8")
    return fill(
        __package__,
        "board.html",
        tables=[(table, [(one, table.record(one)) for one in table.standings.rows]) for table in tables],
        plots={table.track.name: image(tradeoff(table)) for table in tables},
        script=Markup(script),  # a file of this package
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        shown=shown,
        failed=FAILED,
    )


def card(table: TrackTable, standing: Standing) -> str:
    """The page of one row."""
    scores, track = standing.scores, table.track
    cells = scores.row.cells
    first = next(iter(cells.values()))
    of = track.of or track
    measures, values = _measured([(scores, attack) for attack, _ in _attacks(track)])
    return fill(
        __package__,
        "card.html",
        record=table.record(standing),
        entry=scores.row.entry.keys,
        table=table,
        measures=measures,
        attacks=[(attack, label, row) for (attack, label), row in zip(_attacks(track), values, strict=True)],
        fails=fails(scores),
        attempts=table.attempts_at(scores.name),
        worst=scores.numbers()["excess_asr_worst"],
        shown=shown,
        defense=yaml_document.dump({k: v for k, v in first.recipe["defense"].items() if k != "compare"}),
        chosen=[(cell, result.chosen) for cell, result in sorted(cells.items()) if result.chosen],
        environment=first.environment,
        verifications=[(one, one in scores.row.verified) for one in scores.row.verifications],
        cells=len(cells),
        trust=[one.code for one in track.submissions(scores.row.entry) if one.code != OURS],
        track_file=None if of.name in names() else of.path.name,
    )


def fails(scores: Scores) -> list[tuple[str, float]]:
    """The backdoors that still work, by more than chance, and the excess ASR that is left; the worst first.

    A model that was never poisoned has an excess too, where a trigger changes what a text says.
    """
    left = []
    for attack in {cell[0]: None for cell in scores.paired[EXCESS]}:
        values, clean = (
            {cell: rows for cell, rows in each.items() if cell[0] == attack}
            for each in (scores.paired[EXCESS], scores.reference)
        )
        if interval(redrawn(values) - redrawn(clean))[0] > 0:
            left.append((attack, fmean(float(rows.mean()) for rows in values.values())))
    return sorted(left, key=lambda pair: -pair[1])


MEASURES: dict[str, Callable[[Scores, Any], float | None]] = {
    "ACC before": lambda scores, cell: scores.value(ACC, cell, "suspect"),
    "ACC after": lambda scores, cell: scores.value(ACC, cell),
    "ASR before": lambda scores, cell: scores.value(ASR, cell, "suspect"),
    "ASR after": lambda scores, cell: scores.value(ASR, cell),
    "clean ASR": lambda scores, cell: scores.value(ASR, cell, "clean"),
    "excess before": lambda scores, cell: scores.value(EXCESS, cell, "suspect"),
    "excess after": lambda scores, cell: scores.value(EXCESS, cell),
    "PACC after": lambda scores, cell: scores.value(PACC, cell),
    "BACC after": lambda scores, cell: scores.value(BACC, cell),
}


def attack_page(table: TrackTable, name: str) -> str:
    """The page of an attack, the track's or a submitted one: what it is, and what every defense did to it."""
    submitted = table.submitted.get(name)
    pairs: list[tuple[Scores, Attempt | None]]
    if submitted:
        pairs = [(one.tried, one) for one in table.attempts if one.attack.name == name]
    else:
        pairs = [(standing.scores, None) for standing in table.standings.rows]
    pairs.sort(key=lambda pair: _left(pair[0], name))
    measures, values = _measured([(scores, name) for scores, _ in pairs])
    return fill(
        __package__,
        "attack.html",
        name=name,
        table=table,
        attack=submitted.keys if submitted else None,
        kind="submitted" if submitted else dict(_attacks(table.track))[name],
        spec=yaml_document.dump(submitted.keys.attack if submitted else table.track.specs[name]),
        measures=measures,
        rows=[(*pair, row) for pair, row in zip(pairs, values, strict=True)],
        lowered=sum(one.lowers for _, one in pairs if one),
        shown=shown,
    )


def _measured(rows: Sequence[tuple[Scores, str]]) -> tuple[list[str], list[list[float | None]]]:
    """The measures that some row and attack has a number of, and the numbers of each."""
    numbers = [[_mean(scores, attack, of) for of in MEASURES.values()] for scores, attack in rows]
    there = [any(value is not None for value in column) for column in zip(*numbers, strict=True)]
    return list(compress(MEASURES, there)), [list(compress(row, there)) for row in numbers]


def _left(scores: Scores, attack: str) -> float:
    return _mean(scores, attack, MEASURES["excess after"]) or 0.0


def _attacks(track: Track) -> list[tuple[str, str]]:
    kinds = [(track.keys.attacks, "backdoor"), (track.keys.biases, "bias"), ([UNPOISONED], "innocent")]
    return [(attack, kind) for attacks, kind in kinds for attack in attacks]


def _mean(scores: Scores, attack: str, of: Callable[[Scores, Any], float | None]) -> float | None:
    return scores.mean(lambda cell: of(scores, cell), [attack])


def tradeoff(table: TrackTable) -> "Figure":
    """What is left of the attacks against what they cost; each point is marked with its group's letter."""
    # Points that lie close share a label, at the first of them.
    labels: dict[tuple[float, float], tuple[tuple[float, float], list[str]]] = {}
    with canvas(7, 4) as (figure, [axes]):
        for one in table.standings.rows:
            record = table.record(one)
            baseline = record["baseline"]
            style: Any = {"marker": MARKS[1 if baseline else 0], "color": COLOURS[1 if baseline else 0], "zorder": 3}
            x, y = record["acc_lost"], record["excess_asr"]
            if x is None or y is None:
                continue
            axes.plot([x], [y], markersize=5, fillstyle="none" if baseline else "full", **style)
            _, texts = labels.setdefault((round(x, 2), round(y / 2, 2)), ((x, y), []))
            texts.append(record["name"] if baseline else record["group"])
        for place, texts in labels.values():
            axes.annotate(", ".join(dict.fromkeys(texts)), place, (4, 4), "data", "offset points", fontsize=8)
        axes.set_xlabel("ACC lost: to the left is better")
        axes.set_ylabel("excess ASR: lower is better")
    return figure


def shown(value: float | None, form: str = ".3f") -> str:
    """A number as the tables have it."""
    if value is None:
        return "–"
    text = format(value, form)
    return text.removeprefix("-") if not text.strip("-0.") else text.replace("-", "−")


def letters(group: int) -> str:
    """What a group is called: A to Z, then AA, AB and so on."""
    more, last = divmod(group, len(ascii_uppercase))
    return (letters(more - 1) if more else "") + ascii_uppercase[last]
