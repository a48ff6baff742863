"""What authors build on does not change unseen. `python -m tests.test_api` prints what docs/api.txt should be."""

import dataclasses
import importlib
import inspect
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import defensekit
from defensekit.components import KINDS
from defensekit.host.discovery import load_plugins
from defensekit.testing import check_plugin
from defensekit.testing.example import example
from defensekit.testing.pico import pico
from tests.conftest import ROOT

LISTING = ROOT / "docs/api.txt"
MODULES = ("api", "gradients", "testing", "training", "text")
OLD = sorted((ROOT / "tests/written_against").glob("v*.py"))


def public_api() -> str:
    """Every public name with its signature, a line each; of a class, also of one returned, the names that it has."""
    returned = runpy.run_path(str(ROOT / "docs/generate.py"))["returned"]
    told = [getattr(defensekit, name) for name in defensekit.__all__]
    lines = ["# The public API: what users and plugins may import. Printed by `python -m tests.test_api`."]
    for name in defensekit.__all__:
        lines += [f"dk.{line}" for line in _described(name, getattr(defensekit, name))]
        if not inspect.isclass(function := getattr(defensekit, name)):
            new = [one for one in returned(function) if one not in told]
            lines += [f"dk.{name}() -> {line}" for one in new for line in _described(one.__name__, one)]
            told += new
    for module_name in MODULES:
        module = importlib.import_module(f"defensekit.{module_name}")
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__ and n[0] != "_"]
        for name in sorted(getattr(module, "__all__", own)):
            lines += [f"defensekit.{module_name}.{line}" for line in _described(name, getattr(module, name))]
    return "\n".join(lines) + "\n"


def _described(name: str, value: Any) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{name}{_signature(value)}" if callable(value) else f"{name}: {type(value).__name__}"
        return
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    yield f"class {name}({bases})" if bases else f"class {name}"
    fields = [*getattr(value, "model_fields", {})] if issubclass(value, BaseModel) else []
    fields += [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    annotations = {
        key: kind for base in reversed(value.__mro__) for key, kind in vars(base).get("__annotations__", {}).items()
    }
    for field in fields:
        if field[0] != "_":
            yield f"{name}.{field}: {_type(annotations[field])}"
    for key, one in sorted(vars(value).items()):
        if key[0] == "_" or key in fields or key.startswith("model_"):
            continue
        one = inspect.unwrap(getattr(one, "__func__", one)) if callable(getattr(one, "__func__", one)) else one
        if inspect.isfunction(one):
            yield f"{name}.{key}{_signature(one)}"
        elif isinstance(one, str | bool | frozenset | None):
            yield f"{name}.{key} = {sorted(one) if isinstance(one, frozenset) else repr(one)}"
        else:
            yield f"{name}.{key}"


def _signature(function: Any) -> str:
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        return "(...)"
    plain = [
        p.replace(annotation=_type(p.annotation)) if p.annotation is not p.empty else p
        for p in found.parameters.values()
    ]
    returns = found.return_annotation
    ends = returns if returns is inspect.Signature.empty else _type(returns)
    text = str(found.replace(parameters=plain, return_annotation=ends))
    return re.sub(r" at 0x[0-9a-f]+", "", text.replace("'", "").replace('"', ""))


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    plain = re.sub(r"\b(?:\w+\.)+(?=\w)", "", text.strip("'\""))
    return re.sub(r"^Optional\[(.+)\]$", r"\1 | None", plain)  # as newer versions of Python write it


def test_the_public_api_is_what_is_listed() -> None:
    assert public_api() == LISTING.read_text(), (
        "the public API changed: say so in CHANGELOG.md, keep what was there working for a version, and run "
        "`python -m tests.test_api > docs/api.txt`"
    )


def test_the_listing_sees_what_matters() -> None:
    text = LISTING.read_text()
    for line in ("api.Scorer.score(self, t: TensorView) -> Tensor", "api.Row.label: int", "api.hookimpl"):
        assert f"defensekit.{line}" in text


# -- plugins of other days ---------------------------------------------------------------------------------------------

NEWER = {"v0_1": {"sanitizer", "filter", "detector"}}  # the kinds that there were not yet when a plugin was written


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_an_old_plugin_has_every_kind_and_passes_the_kit(path: Path) -> None:
    host = load_plugins([path])
    assert host.problems == []
    seen = set()
    for kind, names in host.registrations.items():
        for name, [claim, *_] in names.items():
            if claim.plugin.name == path.name:
                seen.add(kind)
                given = {"path": pico().suspect} if name == "here" else {}
                report = check_plugin(example(host.find(kind, name), given))
                assert report.passed, str(report)
    assert seen == set(KINDS) - NEWER[path.stem]


RECIPE = """\
name: old
plugins: [{plugin}]
model: {{name: here, path: {base}}}
data: {{name: made, train: 60, clean: 8, dev: 12, test: 24, max_length: 24}}
attack: {{name: front, target: positive}}
training: {{epochs: 1, learning_rate: 1e-3, batch_size: 8}}
defense:
  estimator: gradients
  scorer: {{name: flat, exponent: 0.5}}
  selector: above
  purifier: [back, polish]
  choose: {{rule: best, values: [0.5]}}
  compare: {{chance: {{scorer: drawn}}}}
metrics: [acc, asr, wrong]
executor: sequential
observers: [tally]
"""


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_an_old_plugin_runs(path: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "old.yaml"
    recipe.write_text(RECIPE.format(plugin=path, base=pico().base))
    result = defensekit.run(recipe, tmp_path / "w")
    assert {"clean", "suspect", "fine-tuned", "chance", "purified"} <= result.models.keys()
    assert result.warnings == []


if __name__ == "__main__":
    print(public_api(), end="")
