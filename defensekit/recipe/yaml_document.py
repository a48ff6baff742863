"""YAML read safely, with the location of every key for errors. Files can build on others."""

import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from defensekit.utils.errors import PlacedError, UsageError, listing, nearest
from defensekit.utils.files import environment_path, read_regular, there

LIMIT = 10_000  # values in a recipe, aliases written out: a recipe has dozens, an alias bomb billions
BYTES = 1_000_000
CHAIN = 50  # files, each of which extends the next
_MANY = f"more than {LIMIT:,} values once aliases are written out; refused"

Path_ = tuple[str | int, ...]

_KNOWN = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.2's core types: `no` is a word, 1e-4 is a number, a date is text. It stops where there is too much."""

    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, unless it is one too many."""
        self.nodes += 1
        if self.nodes > 2 * LIMIT:  # a mapping's keys are nodes as well
            raise _TooMany(problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


class _TooMany(yaml.MarkedYAMLError):
    """The text has more values than are read."""


_YamlLoader.yaml_implicit_resolvers = {}
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
    _YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


class Place(NamedTuple):
    """The location of a value, the folder that its paths start from, and whether it is a command's option."""

    label: str
    folder: Path
    option: bool = False


@dataclass(frozen=True)
class Document:
    """Plain data, and the location of every key."""

    name: str
    data: Any
    places: Mapping[Path_, Place] = field(repr=False)

    def place(self, path: Path_) -> Place:
        """The location of a key, or of the nearest one around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places[path]

    def location(self, path: Path_) -> str:
        """File and line of a key, or the setting it comes from."""
        return self.place(path).label

    def describe_location(self, path: Path_) -> str:
        """The location and name of a key, for an error; only the option if the user set the key by one."""
        place, key = self.place(path), ".".join(map(str, path))
        if place.option:
            return place.label if path in self.places else key
        return f"{place.label}: {key}" if key else place.label

    def as_typed(self, path: Path_, text: str) -> str:
        """A message about a key, with paths that were typed with a variable as they were, without its value."""
        value = self.data
        for key in path:
            value = value[int(key)] if isinstance(value, list) else value.get(key) if isinstance(value, dict) else None
        within = [value]
        while within:
            value = within.pop()
            if isinstance(value, str) and "$" in value.replace("$$", ""):
                with suppress(UsageError, ValueError, OSError):  # text that is no path
                    text = text.replace(str((self.place(path).folder / environment_path(value)).resolve()), value)
            within += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return text

    def check_mapping(self, keys: Iterable[str]) -> None:
        """Refuse a document that is no mapping.

        Raises:
            PlacedError: it is none; the message has the keys that were expected.
        """
        if not isinstance(self.data, dict):
            raise PlacedError(f"{self.location(())}: expected a mapping with the keys {listing(keys, 20)}")


def load(
    path: Path, settings: Sequence[str | Document] = (), kept: Mapping[Path_, Collection[str]] | None = None
) -> Document:
    """A file over the files that it extends, and settings (``a.b=value``) over all of them; the last value wins.

    Mappings are laid over each other key by key. Everything else replaces what is below, and so does a mapping that
    names another component, but for the keys that ``kept`` lists for its path; null removes a key. Settings reach
    into lists by number.

    Raises:
        UsageError: with the location, what was expected and the nearest match.
    """
    document = _extended(path, (), kept or {})
    for one in settings:
        document = overlay(document, setting(one) if isinstance(one, str) else one, kept or {})
    return document


def moved(document: Document, own: Path_, path: Path_) -> Document:
    """The value at a path of a document, as a document that has it at another path."""
    data = document.data
    for key in own:
        data = data[key]
    places = {path[:i]: document.place(own) for i in range(len(path) + 1)}
    size = len(own)
    places |= {(*path, *p[size:]): place for p, place in document.places.items() if p[:size] == own}
    for key in reversed(path):
        data = {key: data}
    return Document(document.name, data, places)


def read(path: Path) -> Document:
    """Read one file.

    Raises:
        UsageError: it does not exist, is no YAML, or has more than plain data.
    """
    try:
        text = read_regular(path, BYTES).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (OSError, ValueError) as error:  # a zero byte in the name
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    return _YamlReader(str(path), path.resolve().parent).document(text)


def dump(data: Any) -> str:
    """Plain data as YAML that `read` reads back, keys in the order given."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


# -- one text ----------------------------------------------------------------------------------------------------------


class _YamlReader:
    """Turns one text into plain data; ``lines`` is whether locations have line numbers."""

    def __init__(self, name: str, folder: Path, lines: bool = True) -> None:
        self.name = name
        self.folder = folder
        self.lines = lines
        self.places: dict[Path_, Place] = {}
        self.count = 0
        self.constructor = _YamlLoader("")

    def document(self, text: str) -> Document:
        try:
            root = yaml.compose(text, _YamlLoader)
            self.places[()] = self.place(root)
            data = self.plain(root, ()) if root is not None else None
        except _TooMany as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark and self.lines else ""
            raise PlacedError(f"{self.name}{line}: {_MANY}") from error
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark and self.lines else ""
            raise PlacedError(f"{self.name}{line}: not YAML ({error.problem})") from error
        except yaml.reader.ReaderError as error:
            line = f":{text.count(chr(10), 0, error.position) + 1}" if self.lines else ""
            raise PlacedError(f"{self.name}{line}: not YAML (the character {error.character!r})") from error
        except RecursionError as error:
            deepest = next(reversed(self.places.values()), self.place(None))
            raise PlacedError(f"{deepest.label}: nested too deeply") from error
        except (yaml.YAMLError, ValueError) as error:
            raise PlacedError(f"{self.name}: not YAML ({' '.join(str(error).split())})") from error
        return Document(self.name, data, self.places)

    def place(self, node: yaml.Node | None) -> Place:
        line = node.start_mark.line + 1 if node is not None else 1
        return Place(f"{self.name}:{line}" if self.lines else self.name, self.folder)

    def error(self, node: yaml.Node, text: str) -> PlacedError:
        return PlacedError(f"{self.place(node).label}: {text}")

    def plain(self, node: yaml.Node, path: Path_) -> Any:
        self.places.setdefault(path, self.place(node))
        self.count += 1
        if self.count > LIMIT:
            raise self.error(node, _MANY)
        if isinstance(node, yaml.CollectionNode):
            self.check_tag(node)
        if isinstance(node, yaml.MappingNode):
            data: dict[str, Any] = {}
            for key_node, value in node.value:
                key = self.scalar(key_node)
                if not isinstance(key, str):
                    raise self.error(key_node, f"the key {key!r} is not text; put it in quotes")
                if key in data:
                    raise self.error(key_node, f"the key {key!r} is duplicated")
                self.places[(*path, key)] = self.place(key_node)
                data[key] = self.plain(value, (*path, key))
            return data
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, (*path, i)) for i, item in enumerate(node.value)]
        return self.scalar(node)

    def scalar(self, node: yaml.Node) -> Hashable:
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, "a key has to be text")
        self.check_tag(node)
        try:
            value: Hashable = self.constructor.construct_object(node)
            str(value).encode()
        except (yaml.YAMLError, ValueError, LookupError) as error:  # `!!bool x`; half a character
            raise self.error(node, f"{node.value[:60]!r} can't be read as {node.tag.rpartition(':')[2]}") from error
        return value

    def check_tag(self, node: yaml.Node) -> None:
        if node.tag not in _KNOWN:
            raise self.error(node, f"the tag {node.tag!r} is refused; a recipe is plain data")


# -- one over another --------------------------------------------------------------------------------------------------


def _extended(path: Path, above: tuple[Path, ...], kept: Mapping[Path_, Collection[str]]) -> Document:
    """A file over what it extends; ``above`` are the files that extend it."""
    document = read(path)
    if not isinstance(document.data, dict) or "extends" not in document.data:
        return document
    place = document.place(("extends",))
    named = document.data.pop("extends")
    if not isinstance(named, str):
        raise PlacedError(f"{place.label}: extends: expected the path of a recipe, got {named!r}")
    try:
        below = there(named, place.folder / environment_path(named))
        exists, beside = below.is_file(), [p.name for p in below.parent.glob("*.yaml")]
        chain = (*above, path.resolve())
        circle = below.resolve() in chain
    except (UsageError, ValueError, OSError, RuntimeError) as error:  # a zero byte, a loop of links
        raise PlacedError(f"{place.label}: extends: {named!r} is no path ({error})") from error
    if not exists:
        raise PlacedError(f"{place.label}: extends: there is no file {below}.{nearest(below.name, beside)}")
    if len(chain) > CHAIN:
        raise PlacedError(f"{place.label}: extends: more than {CHAIN} files build on each other; refused")
    if circle:
        names = " -> ".join(p.name for p in (*chain, below))
        raise PlacedError(f"{place.label}: extends: it extends itself ({names})")
    lower = _extended(below, chain, kept)
    if not isinstance(lower.data, dict):
        raise PlacedError(f"{place.label}: extends: {below} is no recipe; expected a mapping")
    return overlay(lower, document, kept)


def setting(text: str) -> Document:
    """``a.b=value`` as a document.

    Raises:
        UsageError: it has another form, or the value is not YAML.
    """
    keys, equals, value = text.partition("=")
    path: Path_ = tuple(keys.strip().split("."))
    label = f"--set {text}"
    if not equals or not all(path):
        raise PlacedError(f"{label}: expected path=value, such as training.epochs=3")
    if path[0] == "extends":
        raise PlacedError(f"{label}: `extends` can only be set in the recipe's file")
    return moved(_YamlReader(label, Path.cwd(), lines=False).document(value), (), path)


def option(name: str, keys: str, value: str) -> Document:
    """The value of a command's option, as a document."""
    return moved(Document(name, value, {(): Place(name, Path.cwd(), option=True)}), (), tuple(keys.split(".")))


def overlay(below: Document, above: Document, kept: Mapping[Path_, Collection[str]]) -> Document:
    """Lay a document over another, as `load` describes."""
    places = dict(below.places)

    def replace(path: Path_, own: Path_, value: Any) -> Any:
        size = len(path)
        for old in [old for old in places if old[:size] == path]:
            del places[old]
        places.update({path + p[len(own) :]: place for p, place in above.places.items() if p[: len(own)] == own})
        return value

    def merge(old: Any, new: Any, path: Path_, own: Path_) -> Any:
        """``own`` is the path in the upper document: a number in a list is text there."""
        if isinstance(old, list) and isinstance(new, dict) and new:
            items = list(old)
            for key, value in new.items():
                if key not in {str(i) for i in range(len(items))}:
                    where = ".".join(map(str, path))
                    known = f"0 to {len(items) - 1}" if items else "it is empty"
                    raise PlacedError(
                        f"{above.location((*own, key))}: {where} is a list and has no item {key!r} ({known})"
                    )
                items[int(key)] = merge(items[int(key)], value, (*path, int(key)), (*own, key))
            return items
        if isinstance(old, str) and isinstance(new, dict) and path:
            old = {"name": old}  # `scorer: diffusion` is `scorer: {name: diffusion}`
            places[(*path, "name")] = places[path]
        if path in kept and isinstance(old, dict) and isinstance(new, str):
            merged = merge(old, {"name": new}, path, own)
            places[(*path, "name")] = above.place(own)  # what it names is beside the file that says so
            return merged
        if not (isinstance(old, dict) and isinstance(new, dict)):
            return replace(path, own, new)
        if path and path != _RECIPE and _other(old, new):
            stay = {key: value for key, value in old.items() if key in kept.get(path, ()) and key not in new}
            their_places = {(*path, key): places[(*path, key)] for key in stay}
            replaced = stay | replace(path, own, new)
            places.update(their_places)
            return replaced
        if path and above.place(own).option:
            places[path] = above.place(own)  # `--clean` names the data: errors about them name that option
        merged = dict(old)
        for key, value in new.items():
            if value is None:
                replace((*path, key), (*own, key), None)  # errors about the missing key name this location
                merged.pop(key, None)
            elif key in merged:
                merged[key] = merge(merged[key], value, (*path, key), (*own, key))
            else:
                merged[key] = replace((*path, key), (*own, key), value)
        return merged

    return Document(below.name, merge(below.data, above.data, (), ()), places)


_RECIPE = ("recipe",)  # of a study: its `name:` is no component's


def _other(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether the new mapping names another component, or a defense at another stage.

    Its parameters or parts then have nothing to do with the old ones.
    """
    stage = "name" not in old and new.get("stage", "weights") != old.get("stage", "weights") and "stage" in new
    return stage or any(key in new and new[key] != old.get(key) for key in ("name", "rule"))


# -- writing -----------------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML version would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
    old = yaml.SafeLoader("").resolve(yaml.ScalarNode, data, (True, False))  # type: ignore[no-untyped-call]
    new = _YamlLoader("").resolve(yaml.ScalarNode, data, (True, False))  # type: ignore[no-untyped-call]
    plain = old == new == "tag:yaml.org,2002:str" and data.isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=None if plain else '"')


_Dumper.add_representer(str, _text)
