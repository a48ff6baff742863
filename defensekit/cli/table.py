"""Results on standard output."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from defensekit.cli.shared import console, table
from defensekit.components import Measured, Planned
from defensekit.recipe import yaml_document
from defensekit.recipe.recipe import Recipe
from defensekit.result.narrative import DETECTORS_MEAN, FILTERED, detector_table, filtered_cells, search
from defensekit.result.schema import ModelResult, Result
from defensekit.utils.errors import listing


def show(result: Result, report: Path) -> None:
    """Print the table of models, a few facts about the run, and where its files are."""
    out = console()
    names = sorted({name for model in result.models.values() for name in model.metrics})
    out.print(Text(result.name, style="bold"))
    drawn = table()
    drawn.add_column("model")
    for name in names:
        drawn.add_column(name.upper().replace("-", "-\n"), justify="right")
    for title in ("reset, of eligible", "reset, of all", "seconds"):
        drawn.add_column(title, justify="right", max_width=8)
    for name, model in result.models.items():
        cells = [_number(model.metrics.get(key), alone=len(names) == 1) for key in names]
        drawn.add_row(Text(result.marked(name)), *cells, *_reset(model), _seconds(model))
    out.print(drawn)
    for mark, (means, _) in result.marks.items():
        out.print(f"{mark} {means}")
    if result.floors:
        names = [name.upper() for name in result.floors]
        out.print(f"floor of {' and '.join(names)}: what the clean reference has, which was never poisoned")
    if result.chosen:
        chosen = result.chosen
        out.print(f"{chosen.over} = {chosen.value:g} by {chosen.rule}: {chosen.reason}")
    if result.detectors:
        _show_detectors(result)
    out.print(f"the defender used {_used(result)}")
    _show_found(result)
    for on, rows in (result.models[result.defended].sanitized or {}).items():
        changed = f"{rows.changed} of {rows.rows} {'clean test' if on == 'plain' else on} rows changed"
        out.print(f"sanitized: {changed}, {rows.words_left} of {rows.words} words left")
    if purified := result.models[result.defended].reset:
        out.print(_inert(purified.eligible, purified.dimensions, purified.eligible_where_zero))
        head = listing(purified.head) or "nothing"
        out.print(f"the head, absent from the base's file and kept from the suspect: {head}")
    for sentence in search(result):
        out.print(sentence)
    if result.statistics and "effective_rows" in result.statistics:
        effective, rows = result.statistics["effective_rows"], result.statistics["rows"]
        out.print(f"the curvature rests on {effective:.1f} effective rows of {rows}")
    for warning in result.warnings:
        out.print(f"warning: {warning}", style="yellow")
    out.print(f"{result.seconds:.0f} s; everything is in {result.folder}")
    out.print(f"report: {report}")


def _show_found(result: Result) -> None:
    """Print which training rows were taken, and how many of them were poisoned."""
    filtered = {name: model.filtered for name, model in result.models.items() if model.filtered}
    if not filtered:
        return
    drawn = table("training rows")
    for title in FILTERED:
        drawn.add_column(title, justify="right")
    for name, counts in filtered.items():
        drawn.add_row(name, *filtered_cells(counts))
    console().print(drawn)


def _show_detectors(result: Result) -> None:
    header, rows = detector_table(result)
    drawn = table()
    for i, title in enumerate(header):
        drawn.add_column(title.replace("-", "-\n").replace(", ", ",\n"), justify="right" if i else "left")
    for row in rows:
        drawn.add_row(*(Text(f"{one.value:z.3f}" if isinstance(one, Measured) else one) for one in row))
    console().print(drawn)
    console().print(DETECTORS_MEAN)


def _used(result: Result) -> str:
    if result.defended == "filtered":
        return f"{result.clean_budget} clean rows, for what its filters and rules look at"
    if result.chosen and (folds := result.chosen.folds):
        return f"{result.clean_budget} clean rows, to choose in {folds} folds, then all to fit anew"
    refit = result.recipe["defense"].get("refit")
    if refit and not result.chosen:
        held_out = f", {result.recipe['data']['dev']} of them to set thresholds" if result.detectors else ""
        return f"{result.clean_budget} clean rows: all to fit{held_out}"
    uses = " and ".join(["choose"] * bool(result.chosen) + ["set thresholds"] * bool(result.detectors))
    fit = result.recipe["data"]["clean"] if result.defended == "purified" or result.detectors else 0
    dev = result.clean_budget - fit
    parts = [f"{rows} to {what}" for rows, what in ((fit, "fit"), (dev, uses)) if rows]
    if len(parts) < 2:
        return f"{result.clean_budget} clean rows" + (f": all to {'fit' if fit else uses}" if parts else "")
    return f"{result.clean_budget} clean rows: {' and '.join(parts)}{', then all to fit anew' if refit else ''}"


def _number(measured: Measured | None, alone: bool) -> str:
    """A metric's value; of the only metric, where there is room, its interval as well."""
    if measured is None:
        return "-"
    interval = f" ({measured.low:z.3f} to {measured.high:z.3f})" if alone else ""
    return f"{measured.value:z.3f}{interval}"


def _reset(model: ModelResult) -> tuple[str, str]:
    if model.reset is None:
        return "-", "-"
    return f"{model.reset.of_eligible:.1%}", f"{model.reset.of_all:.1%}"


def _seconds(model: ModelResult) -> str:
    return "-" if model.seconds is None else f"{model.seconds:.0f}"


def _inert(eligible: int, dimensions: int, where_zero: dict[str, int]) -> str:
    text = f"{eligible / dimensions:.1%} of {dimensions:,} dimensions are eligible"
    for statistic, count in where_zero.items():
        text += f"; {statistic} is exactly 0 on {count / max(eligible, 1):.1%} of them"
    return text


def show_preview(recipe: Recipe, stages: list[Planned], as_json: bool) -> None:
    """Print the resolved recipe, then its stages."""
    if as_json:
        planned = [{**asdict(stage), "cached": stage.cached} for stage in stages]
        sys.stdout.write(json.dumps({"recipe": recipe.resolved(), "stages": planned}) + "\n")
        return
    out = console()
    out.print(yaml_document.dump(recipe.resolved()))
    drawn = table()
    drawn.add_column("stage")
    drawn.add_column("key")
    drawn.add_column("state")
    for stage in stages:
        state = "cached" if stage.cached else "to do" if stage.key else "to do, after the choice"
        drawn.add_row(Text(stage.title), (stage.key or "")[:12], state)
    out.print(drawn)
    cached = sum(stage.cached for stage in stages)
    out.print(f"{len(stages)} stages, {cached} of them cached; nothing was computed")
