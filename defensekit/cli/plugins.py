"""`defensekit plugins`: the installed components and their parameters."""

import inspect
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from defensekit.cli.shared import Files, console, fail, table, to_write, verdict_by_exit_code

app = typer.Typer(help="The installed components.", no_args_is_help=True)


@app.command("list")
def list_plugins(files: Files = None) -> None:
    """List every component by kind and name, and the plugins that could not be loaded."""
    from defensekit.host.discovery import load_plugins

    host = load_plugins(files or ())
    rows = table("kind", "name", "plugin", "version")
    for kind, names in host.registrations.items():
        for name, claims in sorted(names.items()):
            for claim in claims:
                clash = " (registered twice)" if len(claims) > 1 else ""
                origin = Text(f"{claim.plugin.origin}: {claim.plugin.name}")
                rows.add_row(kind, Text(name + clash), origin, claim.plugin.version)
    console().print(rows)
    for problem in host.problems:
        console().print(str(problem), style="yellow")


def _names(incomplete: str) -> list[str]:
    """Completion in a shell."""
    from defensekit.host.discovery import load_plugins

    names = {name for kind in load_plugins().registrations.values() for name in kind}
    return sorted(name for name in names if name.startswith(incomplete))


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="What it is called in YAML; the package is defensekit-NAME.")],
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            help="scorer, estimator, selector, purifier, sanitizer, filter, detector, rule, attack, dataset, "
            "model, metric, executor or observer.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", parser=to_write, help="The folder that the package's folder is written into.")
    ] = Path(),
) -> None:
    """Write a package with one working component, its tests, recipe, README and CI, to start a plugin from."""
    from defensekit.host.scaffold import new_package

    folder = new_package(name, kind, out)
    steps = f"cd {folder} && pip install -e '.[test]' && pytest && defensekit run recipe.yaml"
    console().print(f"{folder} is ready. Next:\n\n    {steps}\n")


@app.command()
@verdict_by_exit_code()
def check(
    what: Annotated[
        str, typer.Argument(metavar="NAME|FILE.py", help="A component, a plugin, or a local plugin's file.")
    ],
    kind: Annotated[
        str | None, typer.Option("--kind", help="Which of several that have the name, as in scorer.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter, as in fraction=0.3; may be repeated."),
    ] = None,
    call: Annotated[
        bool,
        typer.Option("--call/--no-call", help="Whether it is used, or only inspected: using it may need a network."),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for every component.")] = False,
) -> None:
    """Check a plugin's components against the contract of their kinds.

    Exit code 1 if a check fails, 2 if a component could not be built to be checked. In a plugin's own tests
    `defensekit.testing.conformance` runs the same checks.
    """
    import json
    import sys
    from contextlib import redirect_stdout

    from defensekit.cli.conformance import Unbuilt, reports, show_report
    from defensekit.testing import Report

    with redirect_stdout(sys.stderr):  # what plugins print
        checked = reports(what, kind, settings or [], call)
    if as_json:
        sys.stdout.write("".join(json.dumps(report.plain(), ensure_ascii=False) + "\n" for report in checked))
    else:
        for report in checked:
            show_report(report)
    if any(isinstance(report, Report) and not report.passed for report in checked):
        sys.exit(1)
    if unbuilt := [str(report) for report in checked if isinstance(report, Unbuilt)]:
        fail("; ".join(unbuilt), 2)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A component's name, or a plugin's file.", autocompletion=_names)],
    files: Files = None,
) -> None:
    """Show what a component does, its parameters with types, bounds and defaults, and where it comes from."""
    from defensekit.host.discovery import load_plugins
    from defensekit.host.registry import require
    from defensekit.utils.errors import UsageError, choices

    of_a_file = name.endswith(".py")
    host = load_plugins([*(files or ()), Path(name)] if of_a_file else files or ())
    if of_a_file:
        require(host, [Path(name).name])
        claims = [claim for claim in host.claims() if claim.plugin.name == Path(name).name]
    else:
        claims = [claim for claim in host.claims() if claim.name == name]
    if not claims:
        known = sorted({name for names in host.registrations.values() for name in names})
        raise UsageError(f"there is no component {name!r}.{choices(name, known, 'defensekit plugins list')}")
    broken = []
    for number, claim in enumerate(claims):
        if number:
            console().print()
        console().print(Text(f"{claim.kind} {claim.name}", style="bold"))
        try:
            _describe(host.find(claim.kind, claim.name))
        except UsageError as error:
            broken.append(str(error))
        console().print(f"from {claim.plugin}")
    if broken:
        fail("; ".join(dict.fromkeys(broken)), 1)


def _describe(component: type) -> None:
    from defensekit.recipe.json_schema import parameters

    out = console()
    out.print(inspect.getdoc(component) or "(no description)")
    for fact in ("needs", "provides", "on"):
        if value := getattr(component, fact, None):
            out.print(f"{fact}: {value if isinstance(value, str) else ', '.join(sorted(value))}")
    if described := parameters(component):
        rows = table("parameter", "type", "default", "meaning")
        for parameter in described:
            bounds = f" ({parameter.bounds})" if parameter.bounds else ""
            default = "(required)" if parameter.default is None else parameter.default
            rows.add_row(*map(Text, (parameter.name, parameter.type + bounds, default, parameter.meaning)))
        out.print(rows)
    else:
        out.print("no parameters")
    out.print(_source_line(component))


def _source_line(component: type) -> str:
    """File and line of a component's class."""
    try:
        file, line = inspect.getsourcefile(component), inspect.getsourcelines(component)[1]
    except (OSError, TypeError):  # created by a function, or without source
        file, line = inspect.getfile(inspect.getmodule(component) or component), 1
    path = Path(file or "?")
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line}"
