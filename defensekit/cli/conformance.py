"""`defensekit plugins check`: which components to check, and the table of outcomes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.text import Text

from defensekit.cli.shared import console, table
from defensekit.components import KINDS, Component
from defensekit.host.discovery import load_plugins, local_plugin
from defensekit.host.registry import Registration, require, resolve
from defensekit.recipe.yaml_document import setting
from defensekit.testing import Report, check_plugin
from defensekit.testing.example import example
from defensekit.utils.errors import UsageError, choices

STYLES = {"passed": "green", "failed": "red", "expected": "yellow", "skipped": "dim"}


def reports(what: str, kind: str | None, settings: list[str], call: bool) -> list[Report]:
    """Check every component that has a name, or that a plugin or a local file registers.

    Args:
        what: a component's name, a plugin's, or a local plugin's file.
        kind: the kind to keep, where several components have the name.
        settings: parameters, as ``name=value``.
        call: whether components are used, or only inspected.

    Returns:
        A report for each component.

    Raises:
        UsageError: there is no such component, the file is no plugin, or a parameter is not what was expected.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(f"--kind: there is no kind {kind!r}.{choices(kind, KINDS)}")
    given, file = _parameters(settings), Path(what) if what.endswith(".py") else None
    host = load_plugins([file] if file else [])
    every = host.claims()
    if file:
        require(host, [file.name])
        claims = [claim for claim in every if claim.plugin == local_plugin(file)]
    else:
        claims = [claim for claim in every if what in (claim.name, claim.plugin.name)]
    claims = [claim for claim in claims if kind in (None, claim.kind)]
    if not claims:
        known = sorted({claim.name for claim in every if kind in (None, claim.kind)})
        instead = choices(what, known, "defensekit plugins list")
        raise UsageError(f"there is no {kind or 'component'} {what!r}.{instead}")
    chosen = [(claim, resolve(claim)) for claim in claims]
    fields = {name for _, component in chosen for name in component.model_fields}
    for name in sorted(given.keys() - fields):
        raise UsageError(f"--set: {what} has no parameter {name!r}.{choices(name, sorted(fields))}")
    return [_report(claim, component, given, call) for claim, component in chosen]


def _report(claim: Registration, component: type[Component], given: dict[str, Any], call: bool) -> Report:
    own = {name: value for name, value in given.items() if name in component.model_fields}
    try:
        built = example(component, own)
    except UsageError as error:
        raise UsageError(f"{claim.kind} {claim.name}: {error}") from error
    return replace(check_plugin(built, call=call), name=claim.name)


def _parameters(settings: list[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for text in settings:
        given |= setting(text).data
    return given


def show_report(report: Report) -> None:
    """Print a report as a table, with the reason below each check that did not pass."""
    out = console()
    given = ", ".join(f"{name}={value}" for name, value in report.parameters.items())
    out.print(Text(f"{report.kind} {report.name}", style="bold") + Text(f" ({given})" if given else ""))
    rows = table("status", "check", "promise")
    for outcome in report.outcomes:
        status = Text(outcome.status, style=STYLES[outcome.status])
        rows.add_row(status, Text(outcome.check), outcome.says)
        if outcome.reason:
            rows.add_row("", "", Text(outcome.reason, style=STYLES[outcome.status]))
    out.print(rows)
    out.print(report.summary)
