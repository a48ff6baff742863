"""`defensekit plugins check`: which components to check, and the table of outcomes."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.text import Text

from defensekit.cli.shared import console, table
from defensekit.components import KINDS
from defensekit.host.discovery import load_plugins, local_plugin
from defensekit.host.registry import Registration, require, resolve
from defensekit.recipe.yaml_document import setting
from defensekit.testing import Report, check_plugin
from defensekit.testing.example import example
from defensekit.utils.errors import UsageError, choices

STYLES = {"passed": "green", "failed": "red", "expected": "yellow", "skipped": "dim"}


@dataclass(frozen=True)
class Unbuilt:
    """A component that could not be checked, and why: it can't be loaded, or needs a parameter."""

    kind: str
    name: str
    reason: str

    def plain(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "passed": False}

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.reason}"


def reports(what: str, kind: str | None, settings: list[str], call: bool) -> "list[Report | Unbuilt]":
    """Check every component that has a name, or that a plugin or a local file registers.

    Args:
        what: a component's name, a plugin's, or a local plugin's file.
        kind: the kind to keep, where several components have the name.
        settings: parameters, as ``name=value``.
        call: whether components are used, or only inspected.

    Returns:
        A report for each component, or why there is none.

    Raises:
        UsageError: there is no such component or parameter, or the file is no plugin.
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
    fields = {name for claim in claims for name in _fields(claim)}
    for name in sorted(given.keys() - fields):
        raise UsageError(f"--set: {what} has no parameter {name!r}.{choices(name, sorted(fields))}")
    return [_report(claim, given, call) for claim in claims]


def _fields(claim: Registration) -> Collection[str]:
    try:
        return resolve(claim).model_fields.keys()
    except UsageError:
        return ()  # its report says why


def _report(claim: Registration, given: dict[str, Any], call: bool) -> Report | Unbuilt:
    try:
        component = resolve(claim)
        built = example(component, {name: value for name, value in given.items() if name in component.model_fields})
    except UsageError as error:
        return Unbuilt(claim.kind, claim.name, str(error))
    return replace(check_plugin(built, call=call), name=claim.name)


def _parameters(settings: list[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for text in settings:
        given |= setting(text).data
    return given


def show_report(report: Report | Unbuilt) -> None:
    """Print a report as a table, with the reason below each check that did not pass."""
    out = console()
    if isinstance(report, Unbuilt):
        out.print(Text(f"{report.kind} {report.name}", style="bold"))
        out.print(Text(f"not checked: {report.reason}", style=STYLES["failed"]))
        return
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
