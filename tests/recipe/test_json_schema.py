"""The JSON schema accepts what the loader accepts, and refuses what an editor should underline."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from defensekit.api import Scorer
from defensekit.host.discovery import load_plugins
from defensekit.host.registry import Host, Plugin, Registration
from defensekit.recipe import yaml_document
from defensekit.recipe.json_schema import recipe_schema
from defensekit.recipe.loader import load_recipe
from defensekit.utils.errors import UsageError
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    schema = recipe_schema(load_plugins())
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def mistakes(validator: jsonschema.Draft7Validator, data: Any) -> list[str]:
    return [error.message for error in validator.iter_errors(data)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_so_is_what_it_resolves_to(
    path: Path, validator: jsonschema.Draft7Validator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFENSEKIT_TEST_DATA", "/nowhere")
    monkeypatch.setenv("DEFENSEKIT_OTHER_MODEL", "/nowhere")
    assert not mistakes(validator, yaml_document.read(path).data)
    assert not mistakes(validator, load_recipe(path).resolved())


def test_every_parameter_of_every_component_is_described() -> None:
    host = load_plugins()
    for kind in host.registrations:
        for name in host.names(kind):
            for key, parameter in host.find(kind, name).model_fields.items():
                assert parameter.description, f"{kind} {name} {key}"


VARIANTS = [
    ("seed=1", True),
    ("seed=-1", False),
    ("sede=1", False),
    ("training.epochs=0.5", False),
    ("training.epoch=1", False),
    ("defense.scorer=magnitude", True),
    ("defense.scorer=magnitud", False),
    ("defense.scorer={name: diffusion, exponent: 2}", True),
    ("defense.scorer={name: diffusion, exponnt: 2}", False),
    ("defense.scorer={exponent: -1}", False),
    ("defense.estimator={name: fisher-mc}", True),
    ("defense.purifier=[reset, {name: fine-tune, epochs: 1}]", True),
    ("defense.purifier=[]", False),
    ("defense.choose.values=[0.1]", True),
    ("defense.choose.rule=nothing-like-it", False),
    ("defense.compare={other: {scorer: magnitude, purifier: [reset]}}", True),
    ("defense.compare={other: {scorerr: magnitude}}", False),
    ("attack={name: sentence, rate: 0.1}", False),  # the target is missing
    ("defense.detectors=[strip, {name: rap, epochs: 2}]", True),
    ("defense.detectors=[strap]", False),
    ("defense.detectors=[{name: onion, model: minilm}]", True),
    ("defense.detectors=[onion]", False),  # its model is missing
    ("defense.compare={other: {detectors: [strip]}}", False),
    ("metrics=[acc]", True),
    ("metrics=acc", False),
    ("model={name: owner/name, revision: main}", True),
    ("data={name: owner/name, revision: main, label: y, train: 5}", True),
    ("data={name: other.csv, lable: y}", False),
    ("precision=float16", False),
]


@pytest.mark.parametrize(("setting", "good"), VARIANTS, ids=[setting for setting, _ in VARIANTS])
def test_schema_and_loader_agree(
    recipe: Path, setting: str, good: bool, validator: jsonschema.Draft7Validator, tmp_path: Path
) -> None:
    (tmp_path / "other.csv").write_text("text,label\na,x\n")
    assert (not mistakes(validator, yaml_document.load(recipe, [setting]).data)) == good
    if good:
        load_recipe(recipe, [setting])
    else:
        with pytest.raises(UsageError):
            load_recipe(recipe, [setting])


def test_a_recipe_that_extends_may_leave_out_what_it_does_not_change(validator: jsonschema.Draft7Validator) -> None:
    assert not mistakes(validator, {"extends": "other.yaml"})
    mine = {"extends": "other.yaml", "attack": None, "suspect": "./m", "defense": {"scorer": {"exponent": 2}}}
    assert not mistakes(validator, mine)
    assert mistakes(validator, {"extends": "other.yaml", "defense": {"scorer": {"exponnt": 2}}})
    assert mistakes(validator, {"extends": "other.yaml", "sede": 1})


class Leaf(BaseModel):
    """Holds others of its kind."""

    below: "list[Leaf]" = []


class Odd(Scorer):
    """Parameters with names that a schema uses itself."""

    title: str
    required: int = 1
    properties: Leaf = Leaf()

    def score(self, t: Any) -> Any:
        return t.drift


def test_odd_parameters_and_plugins_that_cannot_be_loaded(recipe: Path) -> None:
    host = load_plugins()
    plugin = Plugin("mine", "1", "mine")
    host.registrations["scorer"]["odd"] = [Registration("scorer", "odd", Odd, plugin)]
    validator = jsonschema.Draft7Validator(recipe_schema(host))
    jsonschema.Draft7Validator.check_schema(validator.schema)

    def data(scorer: Any, **top: Any) -> Any:
        made = yaml_document.read(recipe).data
        made["defense"]["scorer"] = scorer
        return {**made, **top}

    assert not mistakes(validator, data({"name": "odd", "title": "a", "required": 2, "properties": {"below": [{}]}}))
    assert mistakes(validator, data({"name": "odd", "title": 1}))
    assert mistakes(validator, data({"name": "odd"}))
    assert not mistakes(validator, data({"required": 2}, extends="x"))
    assert mistakes(validator, data({"required": "x"}, extends="x"))

    host.registrations["scorer"]["gone"] = [Registration("scorer", "gone", "not_there:At", plugin)]
    validator = jsonschema.Draft7Validator(recipe_schema(host))
    assert not mistakes(validator, data({"name": "gone", "anything": 1}))


def test_an_empty_host_makes_no_schema_of_nothing() -> None:
    with pytest.raises(UsageError, match="there is no"):
        recipe_schema(Host())
