"""`defensekit plugins new`: a package with one working component, to start a plugin from."""

import keyword
import os
import re
from dataclasses import dataclass
from pathlib import Path

from defensekit.host.discovery import host_version, load_plugins
from defensekit.host.hookspecs import hook_of
from defensekit.utils.errors import UsageError, choices
from defensekit.utils.files import atomic_folder


@dataclass(frozen=True)
class Kind:
    """A kind of component to start from; ``name`` is also the argument of ``--kind``."""

    name: str
    article: str
    example: str
    parameters: str = ""

    @property
    def hook(self) -> str:
        """The hook that registers the component."""
        return hook_of(self.name)

    @property
    def what(self) -> str:
        """The component with its article, capitalised."""
        return self.article[:1].upper() + self.article[1:]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("scorer", "a scorer", "defense:\n  scorer: {name: NAME, eps: 0.01}"),
        Kind("estimator", "an estimator", "defense:\n  estimator: {name: NAME, batch_size: 8}"),
        Kind("selector", "a selector", "defense:\n  selector: {name: NAME, fraction: 0.3}"),
        Kind("purifier", "a purifier's step", "defense:\n  purifier: [{name: NAME, strength: 0.5}]"),
        Kind("sanitizer", "a sanitizer", "defense:\n  stage: input\n  sanitizer: {name: NAME}"),
        Kind("filter", "a filter", "defense:\n  stage: training\n  filter: {name: NAME, fraction: 0.3}"),
        Kind("detector", "a detector", "defense:\n  detectors: [{name: NAME, kept: 0.7}]"),
        Kind("rule", "a rule", "defense:\n  choose: {rule: NAME, values: [0.4, 0.6]}", "values=(0.4, 0.6)"),
        Kind("attack", "an attack", "attack: {name: NAME, target: positive}", "target=1"),
        Kind("dataset", "a source of data", "data: {name: NAME, train: 160, clean: 64, dev: 16, test: 60}"),
        Kind("model", "a source of a model", "model: {name: NAME, hidden: 32}"),
        Kind("metric", "a metric", "metrics: [acc, {name: NAME, bound: 0.8}]"),
        Kind("executor", "an executor", "executor: {name: NAME, rest: 1}"),
        Kind("observer", "an observer", "observers: [{name: NAME, seconds: 10}]"),
    )
}  # fmt: skip


def new_package(name: str, kind: str, out: Path) -> Path:
    """Write a package ``defensekit-NAME``: module, entry point, tests, recipe, README, CI.

    Args:
        name: the name of the component; a prefix ``defensekit-`` is removed.
        kind: one of `KINDS`.
        out: the folder to create the package in.

    Returns:
        The folder of the package.

    Raises:
        UsageError: there is no such kind, the name is invalid or taken, or the folder already exists.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if kind not in KINDS:
        raise UsageError(f"--kind: there is no kind {kind!r}.{choices(kind, KINDS)}")
    name, of = name.removeprefix("defensekit-"), KINDS[kind]
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > 40 or keyword.iskeyword(module):
        expected = "small letters, digits and single hyphens, a letter first, 40 at most, no keyword of Python"
        raise UsageError(f"{name!r} is not a valid name for a plugin, expected {expected}")
    host = load_plugins()
    if name in host.names(kind):
        raise UsageError(f"there is {of.article} {name!r} already, of {host.plugin_of(kind, name)}; take another name")
    package, folder = f"defensekit_{module}", out / f"defensekit-{name}"
    if os.path.lexists(folder):
        raise UsageError(f"{folder} already exists; nothing was written")
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "recipe.yaml": "recipe.yaml",
        ".github/workflows/test.yml": "ci.yml",
        f"{package}/__init__.py": "init.py",
        f"{package}/{module}.py": f"{kind}.py",
        "tests/test_conformance.py": "test_conformance.py",
    }
    words = {
        "name": name,
        "kind": {**vars(of), "hook": of.hook, "what": of.what, "example": of.example.replace("NAME", name)},
        "distribution": f"defensekit-{name}",
        "package": package,
        "module": module,
        "version": host_version(),
    }
    templates = Environment(
        loader=PackageLoader("defensekit.host.scaffold"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    # A name of Python's, or one that the module has for something else.
    text = templates.get_template(f"{kind}.py.j2").render(words | {"class": ""})
    called = "".join(part.capitalize() for part in name.split("-"))
    taken = keyword.iskeyword(called) or re.search(rf"\b{called}\b", text)
    words["class"] = f"{called}{kind.capitalize()}" if taken else called
    with atomic_folder(folder) as part:
        for relative_path, template in files.items():
            path = part / relative_path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(templates.get_template(f"{template}.j2").render(words), encoding="utf-8")
    return folder
