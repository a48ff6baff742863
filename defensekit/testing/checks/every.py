"""Checks of every component without using it."""

import json
import os
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path

import yaml
from pydantic import ValidationError

from defensekit.host.discovery import load_plugins
from defensekit.host.registry import registration_of
from defensekit.testing.kit import Inapplicable, Mismatch, Subject, check, expect
from defensekit.utils.errors import listing


@check(calls=False)
def survives_yaml(subject: Subject) -> None:
    """Written as YAML and read again as strictly as a recipe, it is the same component."""
    component = subject.component
    text = yaml.safe_dump(component.parameters())
    try:
        read = type(component).model_validate_json(json.dumps(yaml.safe_load(text)), strict=True)
    except ValidationError as error:
        raise Mismatch(f"expected {text.strip()!r} to be accepted, got: {error.errors()[0]['msg']}") from error
    expect(read == component, f"expected {component!r} again, got {read!r}")


@check(calls=False)
def refuses_unknown_parameters(subject: Subject) -> None:
    """Unknown parameters are refused and not silently ignored."""
    given = subject.component.parameters() | {"no_such_parameter": 1}
    try:
        type(subject.component).model_validate(given)
    except ValidationError:
        return
    raise Mismatch("expected `no_such_parameter: 1` to be refused, and it was accepted (extra='forbid' is the default)")


@check(calls=False)
def digests_its_locations(subject: Subject) -> None:
    """Of a path that is a `location` it gives a digest by `contents`; without, old results would be taken for new."""
    component = subject.component
    placed = sorted(component.location & set(component.paths()))
    if component.kind not in ("attack", "purifier") or not placed:
        raise Inapplicable("it has no path as `location`, or is of a kind whose contents are always digested")
    contents = getattr(component, "contents", None)
    hint = "leave it out of `location`, and what is there is digested for you"
    expect(contents and contents(), f"expected `contents` to digest {listing(placed)}, got nothing ({hint})")


@check(calls=False)
def describes_itself(subject: Subject) -> None:
    """It has a docstring, and every parameter has a description; `plugins show` prints them."""
    component = type(subject.component)
    inherited = {base.__doc__ for base in component.__mro__[1:] if base.__module__.startswith("defensekit.components")}
    expect(component.__doc__ and component.__doc__ not in inherited, f"expected a docstring for {component.__name__}")
    for name, field in component.model_fields.items():
        hint = "Field(..., description=...); of a function's parameter: Annotated[float, Field(description=...)]"
        expect(field.description, f"expected a description of the parameter {name!r}: {hint}")


@check(calls=False)
def hashes_and_pickles(subject: Subject) -> None:
    """Equal components have equal hashes and survive pickling, since a stage may run in another process."""
    component = subject.component
    again = component.model_copy()
    try:
        expect(hash(again) == hash(component), f"expected one hash for two components with {component.parameters()}")
        read = pickle.loads(pickle.dumps(component))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise Mismatch(f"expected hash() and pickle to work, got {type(error).__name__}: {error}") from error
    expect(read == component, f"expected {component!r} out of pickle, got {read!r}")


@check(calls=False)
def lists_without_torch(subject: Subject) -> None:
    """Listing its plugin imports neither torch nor transformers: hooks return lazy paths, "package.module:Class"."""
    module = sys.modules[type(subject.component).__module__]
    if module.__name__.startswith("defensekit_local_"):
        imported = _imported_by_listing(None, Path(module.__file__ or ""))
    elif claim := registration_of(load_plugins(), type(subject.component)):
        imported = _imported_by_listing(None if claim.plugin.name == "core" else claim.plugin.name, None)
    else:
        raise Inapplicable("no installed plugin has it: install its package, or check its file")
    expect(not imported, f"expected no heavy import, got {imported}; import it inside the methods that need it")


@cache
def _imported_by_listing(plugin: str | None, file: Path | None) -> str:
    """The slow libraries that a plugin's hooks import, in a separate process."""
    code = (
        "import pathlib, sys; from defensekit.host.discovery import load_plugins;"
        "load_plugins(map(pathlib.Path, sys.argv[1:]));"
        "print(*sorted({'torch', 'transformers', 'tensorflow'} & sys.modules.keys()), sep=' and ')"
    )
    command = [sys.executable, "-P", "-c", code, *([str(file)] if file else [])]
    environment = os.environ | {"DEFENSEKIT_PLUGINS": plugin or ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return done.stdout.splitlines()[-1].strip()
