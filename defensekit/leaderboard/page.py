"""The board as a static site: tables, a page per defense and per attack, and the same as data. Nothing is fetched."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from defensekit.leaderboard import data
from defensekit.leaderboard.attacking import Attempt, attempts_on
from defensekit.leaderboard.columns import COLUMNS, MEASURES, Column, shown
from defensekit.leaderboard.entries import OURS
from defensekit.leaderboard.figures import curve, tradeoff
from defensekit.leaderboard.redraw import interval, redrawn
from defensekit.leaderboard.scores import EXCESS, FAILED, Scores, scores_in
from defensekit.leaderboard.site import refuse_other_than_site, replace_site
from defensekit.leaderboard.table import TrackTable
from defensekit.leaderboard.ties import Standing, standings
from defensekit.leaderboard.tracks import names
from defensekit.recipe import yaml_document
from defensekit.utils.errors import UsageError
from defensekit.utils.files import refuse_inside
from defensekit.utils.html import fill


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
        UsageError: the folder has other files, or lies among the rows.
        DefenseKitError: a row is not right, there are two of one name, or an attack was tried on none of the rows.
    """
    for place in places:
        refuse_inside(out, place, "the rows")
    refuse_other_than_site(out)
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
    tables.sort(key=lambda table: table.track.keys.base == "generated")  # what wins on a made-up base says little
    replace_site(out, files(tables))
    return out / "index.html"


def files(tables: Sequence[TrackTable]) -> dict[str, bytes]:
    """Every file of the site, by its path in it."""
    pages = {"index.html": board(tables)}
    for table in tables:
        for one in table.standings.rows:
            pages[f"{table.track.name}/{one.scores.name}.html"] = card(table, one)
        for name in (*table.track.attacks, *table.submitted):
            pages[f"{table.track.name}/attacks/{name}.html"] = attack_page(table, name)
    return {name: text.encode() for name, text in pages.items()} | data.files(tables)


def board(tables: Sequence[TrackTable]) -> str:
    """The page of tables. Every text that comes from a row is escaped; the one script on it is ours, by its digest."""
    from markupsafe import Markup

    script = (Path(__file__).parent / "sort.js").read_text(encoding="utf-8")
    return fill(
        __package__,
        "board.html",
        tables=[(table, [(one, table.record(one)) for one in table.standings.rows]) for table in tables],
        plots={table.track.name: tradeoff(table) for table in tables},
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
    numbers = {attack: scores.of_attack(attack) for attack in table.attacks}
    measures = measured(numbers.values())
    return fill(
        __package__,
        "card.html",
        record=table.record(standing),
        entry=scores.row.entry.keys,
        table=table,
        no_better_than=standing.no_better_than,
        numbers=[(COLUMNS[name], value) for name, value in scores.numbers().items() if value is not None],
        measures=measures,
        came_back=came_back(measures),
        attacks=[(attack, kind, numbers[attack]) for attack, kind in table.attacks.items()],
        curves=[one for attack in track.keys.attacks if (one := curve(attack, numbers[attack]))],
        fails=fails(scores),
        attempts=table.attempts_at(scores.name),
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


def attack_page(table: TrackTable, name: str) -> str:
    """The page of an attack, the track's or a submitted one: what it is, and what every defense did to it."""
    submitted = table.submitted.get(name)
    pairs: list[tuple[Scores, Attempt | None]]
    if submitted:
        pairs = [(one.tried, one) for one in table.attempts if one.attack.name == name]
    else:
        pairs = [(standing.scores, None) for standing in table.standings.rows]
    rows = [(*pair, pair[0].of_attack(name)) for pair in pairs]
    rows.sort(key=lambda row: row[2]["excess_asr"] or 0.0)
    measures = measured(numbers for _, _, numbers in rows)
    return fill(
        __package__,
        "attack.html",
        name=name,
        table=table,
        attack=submitted.keys if submitted else None,
        kind="submitted" if submitted else table.attacks[name],
        spec=yaml_document.dump(submitted.keys.attack if submitted else table.track.specs[name]),
        measures=measures,
        came_back=came_back(measures),
        rows=rows,
        lowered=sum(one.lowers for _, one in pairs if one),
        shown=shown,
    )


def came_back(measures: Iterable[str]) -> str:
    """What the pages say of the attacker's return, where the track asks for it."""
    there = any(name.startswith("asr_retuned") for name in measures)
    return "; rows: after the attacker trained that further on so many poisoned rows" if there else ""


def measured(rows: Iterable[Mapping[str, float | None]]) -> dict[str, Column]:
    """The measures that some attack or row has a number of."""
    there = {name for row in rows for name, value in row.items() if value is not None}
    return {name: column for name, column in MEASURES.items() if name in there}
