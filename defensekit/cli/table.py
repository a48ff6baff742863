"""What is printed on standard output."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from defensekit.host import Host
from defensekit.results import ModelResult, Result

TITLES = {
    "clean": "clean reference",
    "suspect": "suspect",
    "fine-tuned": "fine-tuned only",
    "random": "random",
    "purified": "purified",
}


def show(result: Result) -> None:
    """The table of models, and in a few lines how it was made and where it lies."""
    console = Console(highlight=False, soft_wrap=True)
    names = sorted({name for model in result.models.values() for name in model.metrics})
    table = Table(title=Text(result.name), title_justify="left")
    table.add_column("model", no_wrap=True)
    floors = {"asr": result.asr_floor} if result.asr_floor is not None else {}
    for name in names:
        table.add_column(name.upper(), justify="right")
        if name in floors:
            table.add_column(f"{name.upper()} floor", justify="right")
    for title in ("reset, of eligible", "reset, of all", "seconds"):
        table.add_column(title, justify="right", max_width=10)
    for name, model in result.models.items():
        cells = []
        for key in names:
            cells.append(f"{model.metrics[key].value:.3f}" if key in model.metrics else "-")
            cells += [f"{floors[key]:.3f}"] if key in floors else []
        table.add_row(Text(TITLES.get(name, name)), *cells, *_reset(model), _seconds(model))
    console.print(table)
    if floors:
        console.print("ASR floor: what the clean reference, never poisoned, answers to the same triggered rows")
    if result.chosen:
        chosen = result.chosen
        console.print(f"{chosen.over} = {chosen.value:g} by {chosen.rule}: {chosen.reason}", markup=False)
    dev = result.clean_budget - result.recipe["data"]["clean"]
    used = f"{result.recipe['data']['clean']} to fit and {dev} to choose" if dev else "all to fit"
    console.print(f"the defender used {result.clean_budget} clean rows: {used}")
    if purified := result.models["purified"].reset:
        console.print(_inert(purified.eligible, purified.dimensions, purified.eligible_where_zero))
        head = ", ".join(purified.head) or "nothing"
        console.print(f"the head, absent from the base's file and kept from the suspect: {head}", markup=False)
    if result.statistics and "effective_rows" in result.statistics:
        effective, rows = result.statistics["effective_rows"], result.statistics["rows"]
        console.print(f"the curvature rests on {effective:.1f} effective rows of {rows}")
    for warning in result.warnings:
        console.print(f"warning: {warning}", markup=False, style="yellow")
    console.print(f"{result.seconds:.0f} s; everything is in {result.folder}", markup=False)


def _reset(model: ModelResult) -> tuple[str, str]:
    if model.reset is None:
        return "-", "-"
    return f"{model.reset.of_eligible:.1%}", f"{model.reset.of_all:.1%}"


def _seconds(model: ModelResult) -> str:
    return "-" if model.seconds is None else f"{model.seconds:.0f}"


def _inert(eligible: int, dimensions: int, where_zero: dict[str, int]) -> str:
    text = f"{eligible / dimensions:.1%} of {dimensions:,} dimensions are eligible (in the base's file, and moved)"
    for statistic, count in where_zero.items():
        text += f"; {statistic} is exactly 0 on {count / max(eligible, 1):.1%} of them"
    return text


def show_plugins(host: Host) -> None:
    """Every component, then what could not be loaded."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table("kind", "name", "plugin", "version")
    for kind, names in host.registrations.items():
        for name, claims in sorted(names.items()):
            for claim in claims:
                clash = " (claimed twice)" if len(claims) > 1 else ""
                table.add_row(
                    kind, Text(name + clash), Text(f"{claim.plugin.origin}: {claim.plugin.name}"), claim.plugin.version
                )
    console.print(table)
    for problem in host.problems:
        console.print(str(problem), markup=False, style="yellow")


def show_store(entries: list[tuple[str, dict[str, Any], int]]) -> None:
    """Every artifact, and what they take together."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table("key", "what", "made", "seconds")
    table.add_column("MiB", justify="right")
    for key, manifest, size in entries:
        title = manifest.get("stage", {}).get("title", "damaged")
        cells = (key[:12], Text(title), manifest.get("created", ""), str(manifest.get("seconds", "")))
        table.add_row(*cells, f"{size / 2**20:,.1f}")
    console.print(table)
    console.print(f"{len(entries)} artifacts, {sum(size for _, _, size in entries) / 2**20:,.1f} MiB")
