"""The parts of the pages that the code says better: hooks, recipe keys, the schema of results, the command line.

    python docs/generate.py [--write]

A page has two comments, `<!-- generated: WHAT -->` and `<!-- end of generated -->`. What stands between them is made
here. A test holds every page to a fresh one. Prints the names of the pages that differ, or mends them.
"""

import argparse
import ast
import inspect
import re
import sys
from pathlib import Path

import typer
from pydantic import BaseModel
from typer.cli import get_docs_for_click

from defensekit import api
from defensekit.cli.main import app
from defensekit.components import KINDS, Component
from defensekit.host import hookspecs
from defensekit.host.discovery import load_plugins
from defensekit.host.registry import Host
from defensekit.recipe.json_schema import Parameter, parameters
from defensekit.recipe.keys import DefenseKeys, InputDefenseKeys, Sizes, Top, TriggeredKeys
from defensekit.result import schema
from defensekit.testing import checks  # noqa: F401 - the checks register themselves
from defensekit.testing.kit import CHECKS
from defensekit.training import TrainingSettings

DOCS = Path(__file__).parent
_BLOCK = re.compile(r"(<!-- generated: (\w+) ?(\w*) -->\n).*?(<!-- end of generated -->\n)", re.DOTALL)


def refreshed(page: str) -> str:
    """A page with everything in it that is generated made anew."""
    return _BLOCK.sub(lambda match: f"{match[1]}\n{MAKERS[match[2]](*filter(None, [match[3]]))}\n{match[4]}", page)


# -- hooks -------------------------------------------------------------------------------------------------------------


def hook(kind: str) -> str:
    """A kind of component: the hook, what to subclass, what it meets, what it is held to, what there is."""
    classes = [KINDS[kind], *(found for found in _classes() if found.__base__ is KINDS[kind])]
    source = re.sub(r'""".*?"""', "", "".join(map(outline, classes)), flags=re.DOTALL)
    met = [found for found in _classes() if not issubclass(found, Component) and _names(found.__name__, source)]
    own = [check for check in CHECKS if any(issubclass(of, KINDS[kind]) for of in check.kinds)]
    return "\n\n".join(
        [
            f"## The hook\n\n{_code(signature(kind))}",
            f"The table is a `{_table()}`: names, as they are written in YAML, and components.",
            f"## What to subclass\n\n{_code(*map(outline, classes))}",
            *([f"## What it meets\n\n{_code(*map(outline, met))}"] if met else []),
            "## What it is held to\n\n`defensekit plugins check` tries, beside what "
            "[every component](../plugins.md#checking) promises:\n\n"
            + (_rows(("check", "what it says"), [(f"`{check.name}`", check.says) for check in own]) or "nothing more."),
            f"## What there is\n\n{_shipped(kind)}",
        ]
    )


def signature(kind: str) -> str:
    """A hook as its specification has it."""
    return f"@hookimpl\ndef {hookspecs.hook_of(kind)}() -> Table: ...\n"


def _table() -> str:
    [found] = [line for line in inspect.getsource(hookspecs).splitlines() if line.startswith("Table = ")]
    return found.removeprefix("Table = ").replace('"', "")


def outline(found: type) -> str:
    """A class as its source has it, docstrings included, without methods' bodies and without what is private."""
    lines = inspect.getsource(found).splitlines()
    [node] = ast.parse("\n".join(lines)).body
    assert isinstance(node, ast.ClassDef)
    first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    kept = lines[first - 1 : node.body[0].lineno - 1]
    for part, after in zip(node.body, [*node.body[1:], None], strict=True):
        target = getattr(part, "target", None) or next(iter(getattr(part, "targets", [])), None)
        name = getattr(part, "name", getattr(target, "id", ""))
        if name.startswith("_") and name not in ("__init__", "__getitem__"):
            continue
        if not isinstance(part, ast.FunctionDef):
            kept += lines[part.lineno - 1 : part.end_lineno]
            kept += [""] if isinstance(part, ast.Expr) and isinstance(after, ast.Assign | ast.AnnAssign) else []
            continue
        head = min([part.lineno, *(one.lineno for one in part.decorator_list)])
        says = part.body[0]
        if ast.get_docstring(part):
            kept += ["", *lines[head - 1 : says.end_lineno]]
        else:
            kept += ["", *lines[head - 1 : says.lineno - 2], f"{lines[says.lineno - 2]} ..."]
    return "\n".join(kept) + "\n"


def _classes() -> list[type]:
    return [found for name in api.__all__ if isinstance(found := getattr(api, name), type)]


def _names(name: str, source: str) -> bool:
    return re.search(rf"\b{name}\b", source) is not None


def _shipped(kind: str) -> str:
    host = load_plugins()
    rows = [
        (f"[`{name}`](../reference/recipe.md#{kind}-{name})", _says(host, kind, name), f"`{plugin.name}`")
        for name in host.names(kind)
        if _ours(plugin := host.plugin_of(kind, name))
    ]
    return _rows((kind, "what it does", "plugin"), rows) or "None ships."


# -- recipes -----------------------------------------------------------------------------------------------------------


def keys() -> str:
    """Every key of a recipe and every parameter of every component, from what the JSON schema is made of."""
    host = load_plugins()
    groups = {
        "At the top": Top,
        "Under `data`": Sizes,
        "Under `training`": TrainingSettings,
        "Under `defense`": DefenseKeys,
        "Under `defense`, of inputs": InputDefenseKeys,
        "Under `triggered`": TriggeredKeys,
    }
    also = {
        "Under `data`": "The source's own keys stand here as well: of a file those of [dataset `file`](#dataset-file).",
        "Under `defense`, of inputs": "A sanitizer that reads with a language model (`onion`) also takes `model`, "
        "written as the base is.",
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
            text.append(f"### {kind} `{name}`\n\n{_says(host, kind, name)}\n\n{described}")
    return "\n\n".join(text)


def _ours(plugin: object) -> bool:
    return getattr(plugin, "origin", "") == "defensekit"


def _says(host: Host, kind: str, name: str) -> str:
    """The first paragraph of a component's docstring."""
    return " ".join((inspect.getdoc(host.find(kind, name)) or "").partition("\n\n")[0].split())


def _parameters(found: list[Parameter]) -> str:
    rows = [
        (
            f"`{one.name}`",
            re.sub(r"\bobject\b", "mapping", one.type) + (f" (`{one.bounds}`)" if one.bounds else ""),
            "(required)" if one.default is None else f"`{one.default}`" if one.default else "",
            one.meaning,
        )
        for one in found
    ]
    return _rows(("key", "type", "default", "meaning"), rows)


# -- results -----------------------------------------------------------------------------------------------------------


def results() -> str:
    """The classes of a result, each after the one that it is part of: what its docstring says, and its keys."""
    classes = [found for found in vars(schema).values() if inspect.isclass(found) and issubclass(found, BaseModel)]
    known = {found.__name__: found for found in classes}
    text, found = [], ["Result"]
    for name in found:
        [node] = ast.parse(inspect.getsource(known[name])).body
        assert isinstance(node, ast.ClassDef)
        fields = [
            (part, ast.unparse(part.annotation).strip("'")) for part in node.body if isinstance(part, ast.AnnAssign)
        ]
        found += [other for _, kind in fields for other in known if _names(other, kind) and other not in found]
        rows = [
            (
                f"`{ast.unparse(part.target)}`",
                f"`{kind}`",
                f"`{ast.unparse(part.value)}`" if part.value else "(required)",
            )
            for part, kind in fields
        ]
        says = " ".join((inspect.getdoc(known[name]) or "").replace("``", "`").split())
        text.append(f"## {name}\n\n{says}\n\n{_rows(('key', 'type', 'default'), rows)}")
    return "\n\n".join(text)


# -- the command line --------------------------------------------------------------------------------------------------


def commands() -> str:
    """What `--help` says of every command, by typer's own generator of documentation."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="defensekit")
    return text.partition("\n")[2].strip().replace("```console\n$ ", "```text\n")


# -- Markdown ----------------------------------------------------------------------------------------------------------


def _code(*parts: str) -> str:
    return "```python\n" + "\n\n".join(parts) + "```"


def _rows(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = [" | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in line) for line in lines]
    return "\n".join(f"| {line} |" for line in cells) if rows else ""


MAKERS = {"hook": hook, "keys": keys, "results": results, "commands": commands}


def main() -> None:
    """Say which pages are stale, or mend them."""
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
