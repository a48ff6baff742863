"""The parts of the pages that come from the code: hooks, recipe keys, results, the Python API, the command line.

    python docs/generate.py [--write]

A page has two comments, `<!-- generated: WHAT -->` and `<!-- end of generated -->`. What is between them is written
here, and a test compares. Prints the names of the pages that differ, or updates them. No line is longer than 120.
"""

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import typer
from pydantic import BaseModel
from typer.cli import get_docs_for_click

import defensekit
from defensekit import api
from defensekit.cli.main import app
from defensekit.components import KINDS, Component
from defensekit.components.tensors import Scored
from defensekit.host import hookspecs
from defensekit.host.discovery import load_plugins
from defensekit.host.registry import Host
from defensekit.recipe.json_schema import Parameter, parameters
from defensekit.recipe.keys import (
    DefenseKeys,
    InputDefenseKeys,
    RetuningKeys,
    Sizes,
    Top,
    TrainingDefenseKeys,
    TriggeredKeys,
)
from defensekit.result import schema
from defensekit.testing import checks  # noqa: F401 - the checks register themselves
from defensekit.testing.kit import CHECKS
from defensekit.text import Truncation
from defensekit.training import TrainingSettings

DOCS = Path(__file__).parent
_BLOCK = re.compile(r"(<!-- generated: (\w+) ?(\w*) -->\n).*?(<!-- end of generated -->\n)", re.DOTALL)


def refreshed(page: str) -> str:
    """A page with everything in it that is generated written again."""
    return _BLOCK.sub(lambda match: f"{match[1]}\n{MAKERS[match[2]](*filter(None, [match[3]]))}\n{match[4]}", page)


# -- hooks -------------------------------------------------------------------------------------------------------------


def hook(kind: str) -> str:
    """A kind of component: the hook, what to subclass, what it is given, what is checked, what ships."""
    classes = [KINDS[kind], *(other for other in _classes() if other.__base__ is KINDS[kind])]
    met = _met(classes)
    own = [check for check in CHECKS if any(issubclass(of, KINDS[kind]) for of in check.kinds)]
    return "\n\n".join(
        [
            f"## The hook\n\n{_code(signature(kind))}",
            f"The table is a `{_table()}`: names, as they are written in YAML, and components.",
            f"## What to subclass\n\n{_code(*map(outline, classes))}",
            *([f"## What it is given\n\n{_code(*map(outline, met))}"] if met else []),
            "## What is checked\n\n`defensekit plugins check` tries, beside what "
            "[every component](../plugins.md#checking) promises:\n\n"
            + (_listed([(f"`{check.name}`", check.says) for check in own]) or "nothing more."),
            f"## What ships\n\n{_shipped(kind)}",
        ]
    )


def signature(kind: str) -> str:
    """A hook as its specification has it."""
    return f"@hookimpl\ndef {hookspecs.hook_of(kind)}() -> Table: ...\n"


def _table() -> str:
    [line] = [line for line in inspect.getsource(hookspecs).splitlines() if line.startswith("Table = ")]
    return line.removeprefix("Table = ").replace('"', "")


def _declared(function: Callable[..., object]) -> str:
    """The lines from `def` to the colon."""
    lines = inspect.getsource(function).splitlines()
    node = ast.parse("\n".join(lines)).body[0]
    assert isinstance(node, ast.FunctionDef)
    declared = "\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
    return re.sub(r"\s*# type: ignore\S*", "", declared)


def outline(described: type, fields: bool = True) -> str:
    """A class as its source has it, docstrings included, without methods' bodies and without what is private.

    Without its ``fields`` it has no docstring of its own either.
    """
    lines = inspect.getsource(described).splitlines()
    [node] = ast.parse("\n".join(lines)).body
    assert isinstance(node, ast.ClassDef)
    first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    kept = lines[first - 1 : node.body[0].lineno - 1]
    methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
    for part, after in zip(node.body, [*node.body[1:], None], strict=True):
        target = getattr(part, "target", None) or next(iter(getattr(part, "targets", [])), None)
        name = getattr(part, "name", getattr(target, "id", ""))
        if name.startswith("_") and name not in ("__init__", "__getitem__"):
            continue
        if not isinstance(part, ast.FunctionDef):
            if not fields:
                continue
            kept += lines[part.lineno - 1 : part.end_lineno]
            kept += [""] if isinstance(part, ast.Expr) and isinstance(after, ast.Assign | ast.AnnAssign) else []
            continue
        head = min([part.lineno, *(one.lineno for one in part.decorator_list)])
        says = part.body[0]
        kept += [""] if fields or part is not methods[0] else []
        if ast.get_docstring(part):
            kept += lines[head - 1 : says.end_lineno]
        else:
            kept += [*lines[head - 1 : says.lineno - 2], f"{lines[says.lineno - 2]} ..."]
    return "\n".join(kept) + "\n"


def _met(classes: list[type]) -> list[type]:
    """What is no component of what classes name outside docstrings, of what that names in turn, and so on."""
    seen = list(classes)
    for described in seen:
        source = re.sub(r'""".*?"""', "", outline(described), flags=re.DOTALL)
        others = (other for other in _classes() if not issubclass(other, Component) and other not in seen)
        seen += [other for other in others if _names(other.__name__, source)]
    return seen[len(classes) :]


def _classes() -> list[type]:
    """What authors import, and what they are handed by it."""
    exported = [getattr(api, name) for name in api.__all__]
    return [one for one in (*exported, Scored, Truncation, TrainingSettings) if isinstance(one, type)]


def _names(name: str, source: str) -> bool:
    return re.search(rf"\b{name}\b", source) is not None


def _shipped(kind: str) -> str:
    host = load_plugins()
    rows = [
        (f"[`{name}`](../reference/recipe.md#{kind}-{name}) (plugin `{plugin.name}`)", _says(host, kind, name))
        for name in host.names(kind)
        if _ours(plugin := host.plugin_of(kind, name))
    ]
    return _listed(rows) or "None ships."


# -- recipes -----------------------------------------------------------------------------------------------------------


def keys() -> str:
    """Every key of a recipe and every parameter of every component, from what the JSON schema is made of."""
    host = load_plugins()
    groups = {
        "At the top": Top,
        "Under `data`": Sizes,
        "Under `training`": TrainingSettings,
        "Under `retuning`": RetuningKeys,
        "Under `defense`": DefenseKeys,
        "Under `defense`, of inputs": InputDefenseKeys,
        "Under `defense`, of training data": TrainingDefenseKeys,
        "Under `triggered`": TriggeredKeys,
    }
    also = {
        "Under `data`": "The source's own keys are here as well: for a file those of [dataset `file`](#dataset-file).",
        "Under `defense`, of inputs": "A sanitizer or detector that reads with a language model (`onion`) also takes "
        "`model`, written as the base is.",
    }
    text = [
        "\n\n".join([f"## {title}", _parameters(parameters(model)), *([also[title]] if title in also else [])])
        for title, model in groups.items()
    ]
    for kind in KINDS:
        names = [name for name in host.names(kind) if _ours(host.plugin_of(kind, name))]
        if names:
            text.append(f"## {hookspecs.hook_of(kind).removeprefix('defensekit_').capitalize()}")
        for name in names:
            described = _parameters(parameters(host.find(kind, name))) or "No parameters."
            text.append(f"### {kind} `{name}`\n\n{_wrapped(_says(host, kind, name))}\n\n{described}")
    return "\n\n".join(text)


def _ours(plugin: object) -> bool:
    return getattr(plugin, "origin", "") == "defensekit"


def _says(host: Host, kind: str, name: str) -> str:
    """The first paragraph of a component's docstring."""
    return " ".join((inspect.getdoc(host.find(kind, name)) or "").partition("\n\n")[0].split())


def _parameters(parameters: list[Parameter]) -> str:
    rows = []
    for one in parameters:
        about = [re.sub(r"\bobject\b", "mapping", one.type), *([f"`{one.bounds}`"] if one.bounds else [])]
        about += ["required"] if one.default is None else [f"default `{one.default}`"] if one.default else []
        rows.append((f"`{one.name}` ({', '.join(about)})", one.meaning))
    return _listed(rows)


# -- results -----------------------------------------------------------------------------------------------------------


def results() -> str:
    """The classes of a result, each after the one that it is part of: what its docstring says, and its keys."""
    classes = [model for model in vars(schema).values() if inspect.isclass(model) and issubclass(model, BaseModel)]
    known = {model.__name__: model for model in classes}
    text, names = [], ["Result"]
    for name in names:
        [node] = ast.parse(inspect.getsource(known[name])).body
        assert isinstance(node, ast.ClassDef)
        fields = [
            (part, ast.unparse(part.annotation).strip("'")) for part in node.body if isinstance(part, ast.AnnAssign)
        ]
        names += [other for _, kind in fields for other in known if _names(other, kind) and other not in names]
        rows = [(f"`{ast.unparse(part.target)}`", f"`{kind}`, {_default(part.value)}") for part, kind in fields]
        text.append(f"## {name}\n\n{_wrapped(_plain(inspect.getdoc(known[name]) or ''))}\n\n{_listed(rows)}")
    return "\n\n".join(text)


def _default(value: ast.expr | None) -> str:
    return f"default `{ast.unparse(value)}`" if value else "required"


# -- the Python API ----------------------------------------------------------------------------------------------------


def python() -> str:
    """What `import defensekit as dk` offers: a signature, what its docstring says, and what it returns of ours."""
    text, shown = [], [getattr(defensekit, name) for name in defensekit.__all__]
    for name in defensekit.__all__:
        exported = getattr(defensekit, name)
        if exported is schema.Result:
            more = f"[Its keys](result.md), and what follows from them:\n\n{_code(outline(exported, fields=False))}"
            text.append(f"## `dk.{name}`\n\n{_docstring(exported)}\n\n{more}")
        elif isinstance(exported, type):
            text.append(f"## `dk.{name}`\n\n{_code(outline(exported))}")
        elif callable(exported):
            text.append(f"## `dk.{name}`\n\n{_code(_declared(exported) + ' ...' + chr(10))}\n\n{_docstring(exported)}")
            new = [one for one in returned(exported) if one not in shown]
            text += [f"What it returns:\n\n{_code(*map(outline, new))}"] if new else []
            shown += new
    return "\n\n".join(text)


def returned(function: Callable[..., object]) -> list[type]:
    """The classes of ours that a function returns, alone, in a list, or as one of several."""

    def parts(annotation: object) -> Iterator[object]:
        yield annotation
        for inner in get_args(annotation):
            yield from parts(inner)

    found = parts(inspect.signature(function).return_annotation)
    return [one for one in found if isinstance(one, type) and one.__module__.startswith("defensekit.")]


def _docstring(named: object) -> str:
    """A docstring in Google's style, as Markdown."""
    before, *sections = re.split(r"^(Args|Returns|Yields|Raises):\n", inspect.getdoc(named) or "", flags=re.MULTILINE)
    text = [_wrapped(_plain(paragraph)) for paragraph in before.strip().split("\n\n")]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        inner, _, after = textwrap.dedent(body).rstrip().partition("\n\n")
        entries = re.split(r"\n(?=\S)", inner)
        if title in ("Args", "Raises"):
            named = [entry.partition(":")[::2] for entry in entries]
            rows = [(", ".join(f"`{one.strip()}`" for one in names.split(",")), _plain(says)) for names, says in named]
            text += [f"**{title}**", _listed(rows)]
        else:
            text.append(_wrapped(f"**{title}**: {_plain(inner)}"))
        text += [_wrapped(_plain(after))] if after else []
    return "\n\n".join(text)


# -- the command line --------------------------------------------------------------------------------------------------


def commands() -> str:
    """What `--help` says of every command, by typer's own generator of documentation."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="defensekit")
    lines = text.partition("\n")[2].strip().replace("```console\n$ ", "```text\n").splitlines()
    return "\n".join(_wrapped(line, "  ") if line.startswith("* ") else line for line in lines)


# -- Markdown ----------------------------------------------------------------------------------------------------------


def _code(*parts: str) -> str:
    return "```python\n" + "\n\n".join(parts) + "```"


def _plain(text: str) -> str:
    """A docstring's paragraph on one line, with Markdown's marks for code."""
    return " ".join(text.replace("``", "`").split())


def _wrapped(text: str, indent: str = "") -> str:
    """A paragraph in lines of at most 120; a dash never begins a line, where it would begin a list."""
    glued = text.replace(" - ", "\N{NO-BREAK SPACE}- ")
    lines = textwrap.wrap(glued, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}- ", " - ")


def _listed(rows: list[tuple[str, str]]) -> str:
    """What each is, and what is said of it. Tables of sentences would have lines of any length."""
    return "\n".join(_wrapped(f"- {name}: {says}", "  ") for name, says in rows)


MAKERS = {"hook": hook, "keys": keys, "results": results, "python": python, "commands": commands}


def main() -> None:
    """Say which pages are stale, or update them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write, stale = parser.parse_args().write, 0
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (fresh := refreshed(text)) != text:
            print(page)
            stale += not write
            if write:
                page.write_text(fresh, encoding="utf-8")
    sys.exit(min(stale, 1))


if __name__ == "__main__":
    main()
