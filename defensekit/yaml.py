"""YAML read safely, with the line of every key: what errors point at."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from defensekit.errors import UsageError

LIMIT = 100_000  # values in a recipe, aliases written out: a recipe has dozens, an alias bomb billions

Path_ = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core types: `no` is a word, 1e-4 is a number, a date is text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


class Document:
    """A YAML file as plain data, and the line of every key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[Path_, int] = {}
        self._count = 0
        try:
            text = path.read_text(encoding="utf-8")
            root = yaml.compose(text, _Loader)
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            raise UsageError(f"{path}{line}: not YAML ({error.problem})") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UsageError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
        self._constructor = _Loader("")
        try:
            self.data = self._plain(root, ()) if root is not None else None
        except RecursionError as error:
            raise UsageError(f"{path}: nested too deeply") from error

    def where(self, path: Path_) -> str:
        """File and line of a key, or of the nearest one around it."""
        while path and path not in self._lines:
            path = path[:-1]
        return f"{self.path}:{self._lines.get(path, 1)}"

    def _plain(self, node: yaml.Node, path: Path_) -> Any:
        self._lines.setdefault(path, node.start_mark.line + 1)
        self._count += 1
        if self._count > LIMIT:
            raise UsageError(f"{self.path}: more than {LIMIT:,} values once its aliases are written out; refused")
        if isinstance(node, yaml.MappingNode):
            data: dict[str, Any] = {}
            for key_node, value in node.value:
                key = self._scalar(key_node)
                line = key_node.start_mark.line + 1
                if not isinstance(key, str):
                    raise UsageError(f"{self.path}:{line}: the key {key!r} is not text; put it in quotes")
                if key in data:
                    raise UsageError(f"{self.path}:{line}: the key {key!r} stands twice")
                self._lines[(*path, key)] = line
                data[key] = self._plain(value, (*path, key))
            return data
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._scalar(node)

    def _scalar(self, node: yaml.Node) -> Hashable:
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.ScalarNode):
            raise UsageError(f"{self.path}:{line}: a key has to be text")
        known = ("null", "bool", "int", "float", "str")
        if node.tag not in {f"tag:yaml.org,2002:{name}" for name in known}:
            raise UsageError(f"{self.path}:{line}: the tag {node.tag!r} is refused; a recipe is plain data")
        try:
            value: Hashable = self._constructor.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise UsageError(f"{self.path}:{line}: {node.value[:60]!r} can't be read ({error})") from error
        return value


def dump(data: Any) -> str:
    """Plain data as YAML that `Document` reads back, keys in the order given."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML version would take for something other than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
    old = yaml.SafeLoader("").resolve(yaml.ScalarNode, data, (True, False))  # type: ignore[no-untyped-call]
    new = _Loader("").resolve(yaml.ScalarNode, data, (True, False))  # type: ignore[no-untyped-call]
    plain = old == new == "tag:yaml.org,2002:str" and data.isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=None if plain else '"')


_Dumper.add_representer(str, _text)
