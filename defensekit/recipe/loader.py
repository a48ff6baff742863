"""From YAML to a recipe: errors that say file, line, key and the nearest match."""

import json
import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from defensekit.components import (
    Attack,
    Component,
    DatasetSource,
    Estimator,
    Executor,
    Metric,
    ModelSource,
    Observer,
    Purifier,
    Rule,
    Sanitizer,
    Scorer,
    Selector,
    WeightStep,
)
from defensekit.host.discovery import load_plugins
from defensekit.host.registry import Host, require
from defensekit.host.requirements import require_installed
from defensekit.host.sources import hub_parameters
from defensekit.host.tables import SUFFIXES
from defensekit.recipe import yaml_document
from defensekit.recipe.keys import DefenseKeys, InputDefenseKeys, Sizes, Spec, Top, TriggeredKeys
from defensekit.recipe.recipe import Defense, Named, Recipe
from defensekit.recipe.vocabulary import MODELS
from defensekit.recipe.yaml_document import Document, Path_
from defensekit.training import TrainingSettings, native_precision
from defensekit.utils.errors import PlacedError, UsageError, listing, nearest
from defensekit.utils.files import environment_path, literal_path, nearest_path

Model = TypeVar("Model", bound=BaseModel)
Part = TypeVar("Part", bound=Component)
Made = TypeVar("Made")


def load_recipe(path: str | Path, settings: str | Sequence[str | Document] = ()) -> Recipe:
    """Read and check a recipe, with settings such as ``training.epochs=3`` laid over it.

    Raises:
        UsageError: with file, line and key, what was expected and what is close to what was typed.
    """
    document = yaml_document.load(Path(path), [settings] if isinstance(settings, str) else settings, KEPT)
    return recipe_of(document, {})


def recipe_of(document: Document, known: dict[Hashable, Any]) -> Recipe:
    """The recipe that a document is. ``known`` remembers what recipes have in common: plugins, parts.

    Raises:
        UsageError: as `load_recipe`.
    """
    if not isinstance(document.data, dict):
        keys = listing(Top.model_fields, 20)
        raise PlacedError(f"{document.where(())}: expected a mapping with the keys {keys}")
    return Loading(document, known).recipe()


# What a model that every run reports is called, in code and in tables.
TAKEN = {*MODELS, *(title for title, _ in MODELS.values())}

# What a defense of weights is made of.
FOUR = ("estimator", "scorer", "selector", "purifier")

# What stands under `data` and is no parameter of the source named there.
KEPT: dict[Path_, Collection[str]] = {("data",): Sizes.model_fields.keys()}


class Loading:
    """Turns a document into a recipe, remembering where everything stands."""

    def __init__(self, document: Document, known: dict[Hashable, Any]) -> None:
        self.document = document
        self.known = known
        self.host = Host()

    def recipe(self) -> Recipe:
        top = self.keys(Top, self.document.data, ())
        for i, requirement in enumerate(top.requires):
            self.at(("requires", i), partial(require_installed, requirement))
        plugins = tuple(self.resolve(name, ("plugins", i)) for i, name in enumerate(top.plugins))
        if plugins not in self.known:
            for i, file in enumerate(plugins):
                self.at(("plugins", i), partial(self.is_file, file))
            self.known[plugins] = self.at(("plugins",), lambda: load_plugins(plugins))
        self.host = self.known[plugins]
        self.at(("plugins",), lambda: require(self.host, [path.name for path in plugins]))
        self.exclusive(top)
        settings = self.keys(TrainingSettings, top.training or {}, ("training",))
        defense_keys = self.defense_keys(top.defense)
        defense = self.defense(defense_keys)
        choose = self.rule(defense_keys.choose, defense)
        sizes, data = self.at(("data",), lambda: self.data(top.data))
        if top.suspect is not None:
            # Nobody trains: every row is the defender's, and where nothing is chosen none is kept to choose by.
            if sizes.train is not None:
                raise self.error(
                    ("data", "train"), "says how many rows the attacker trains on; with `suspect:` nobody does"
                )
            sizes = sizes.model_copy(update={"train": 0} if choose else {"train": 0, "dev": 0})
        target, triggered = self.triggered(top.triggered)
        attack = self.part(Attack, top.attack, ("attack",)) if top.attack is not None else None
        return Recipe(
            name=top.name,
            model=self.at(("model",), lambda: self.model(top.model)),
            data=data,
            sizes=sizes,
            attack=attack,
            suspect=self.suspect(top.suspect),
            triggered=triggered,
            triggered_target=target,
            training=settings,
            precision=native_precision() if top.precision == "auto" else top.precision,
            defense=defense,
            choose=choose,
            compare=self.compare(self.compared(defense_keys), defense, choose),
            metrics=self.metrics(top.metrics, attack),
            seed=top.seed,
            executor=self.part(Executor, top.executor, ("executor",)),
            observers=tuple(self.part(Observer, spec, ("observers", i)) for i, spec in enumerate(top.observers)),
            plugins=plugins,
            requires=tuple(top.requires),
            host=self.host,
            document=self.document,
        )

    # -- errors with their place ----------------------------------------------------------------------------------

    def error(self, path: Path_, text: str) -> PlacedError:
        return PlacedError(f"{self.document.told(path)}: {text}")

    def at(self, path: Path_, call: Callable[[], Made]) -> Made:
        """Call; what goes wrong is told with its place, unless it says a better one itself."""
        try:
            return call()
        except PlacedError:
            raise
        except UsageError as error:
            raise self.error(path, str(error)) from error
        except OSError as error:  # a name too long, a folder that may not be read
            raise self.error(path, f"{error.strerror or error}: {error.filename}") from error

    def keys(self, model: type[Model], data: Any, path: Path_) -> Model:
        """Check plain data against a model, strictly, as JSON: 1 is a float, but "1" and true are not."""
        try:
            return model.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
            place = tuple(part for i, part in enumerate(first["loc"]) if i == 0 or not _is_union_tag(part))
            raise self.error((*path, *place), explain(first, model)) from error

    def exclusive(self, top: Top) -> None:
        if (top.attack is None) == (top.suspect is None):
            raise self.error((), "expected either `attack:` (to poison a model) or `suspect:` (a folder with one)")
        if top.suspect is not None and top.training is not None:
            raise self.error(("training",), "says how the attacker trains; with `suspect:` nobody does")
        if top.attack is not None and top.triggered is not None:
            raise self.error(("triggered",), "belongs to `suspect:`; an attack makes its own triggered rows")

    # -- components ------------------------------------------------------------------------------------------------

    def part(self, kind: type[Part], spec: Spec, path: Path_, name_key: str = "name") -> Named:
        """Build a component of a kind from its name, or from a mapping with its name and parameters."""
        given: dict[str, Any] = {name_key: spec} if isinstance(spec, str) else dict(spec)
        if not isinstance(given.get(name_key), str):
            raise self.error(path, f"expected a name, or a mapping with `{name_key}:` and parameters")
        name = given.pop(name_key)
        found = self.at((*path, name_key), lambda: self.host.find(kind.kind, name))
        for key in found.paths():
            value = given.get(key)
            if isinstance(value, str):
                given[key] = str(self.resolve(value, (*path, key)))
            elif isinstance(value, list) and all(isinstance(item, str) for item in value):
                given[key] = [str(self.resolve(item, (*path, key, i))) for i, item in enumerate(value)]
        wanted = (found, name, json.dumps(given))
        if wanted not in self.known:
            self.known[wanted] = Named(name, self.keys(found, given, path))
        return cast(Named, self.known[wanted])

    def model(self, spec: Spec, path: Path_ = ("model",)) -> Named:
        given = {"name": spec} if isinstance(spec, str) else dict(spec)
        name = given.get("name")
        if isinstance(name, str) and name not in self.host.names("model"):
            if folder := self.local(name, (*path, "name")):
                given = self.instead(given, path, {"name": "folder", "path": literal_path(folder)})
            elif found := hub_parameters(name):
                given = self.at_revision(self.instead(given, path, found), path)
            else:
                names = self.host.names("model")
                close = nearest(name, names) or nearest_path(self.resolve(name, (*path, "name")))
                raise self.error(
                    path,
                    f"{name!r} is no model source, no folder and no hub id with a revision (owner/name@revision)."
                    f"{close} (known sources: {listing(names)})",
                )
        return self.part(ModelSource, given, path)

    def instead(self, given: dict[str, Any], section: Path_, parameters: dict[str, Any]) -> dict[str, Any]:
        """What was written as a path or hub id, as its source with parameters; one may not be written twice."""
        for key in parameters:
            if key != "name" and key in given:
                raise self.error((*section, key), f"stands in `name: {given['name']}` already")
        return given | parameters

    def at_revision(self, given: dict[str, Any], section: Path_) -> dict[str, Any]:
        """What lies on a hub, refused where it is not said in which version."""
        if "revision" not in given:
            name = given["id"]
            close = nearest_path(self.resolve(name, (*section, "name")))
            raise self.error(section, f"{name!r} needs a revision: write {name}@main, or a tag or commit.{close}")
        return given

    def data(self, spec: Spec) -> tuple[Sizes, Named]:
        given = {"name": spec} if isinstance(spec, str) else dict(spec)
        own = {key: given.pop(key) for key in list(given) if key in Sizes.model_fields}
        sizes = self.keys(Sizes, own, ("data",))
        name = given.get("name")
        if isinstance(name, str) and name not in self.host.names("dataset"):
            path = self.resolve(name, ("data", "name"))
            if path.exists() or path.suffix in SUFFIXES or name.startswith((".", "/", "~", "$")):
                given = self.instead(given, ("data",), {"name": "file", "path": literal_path(path)})
            elif found := hub_parameters(name):
                given = self.at_revision(self.instead(given, ("data",), found), ("data",))
        return sizes, self.part(DatasetSource, given, ("data",))

    def suspect(self, path: str | None) -> Named | None:
        if path is None:
            return None
        return self.part(ModelSource, {"name": "folder", "path": path}, ("suspect",))

    def triggered(self, spec: dict[str, Any] | None) -> tuple[str | int | None, Named | None]:
        if spec is None:
            return None, None
        keys = self.keys(TriggeredKeys, spec, ("triggered",))
        given = {**(keys.model_extra or {}), "name": "file", "path": keys.path}
        return keys.target, self.part(DatasetSource, given, ("triggered",))

    def defense_keys(self, data: dict[str, Any]) -> DefenseKeys | InputDefenseKeys:
        """The keys under ``defense``, which hang on where it acts."""
        stage = data.get("stage", "weights")
        if stage not in ("weights", "input"):
            hint = nearest(str(stage), ("weights", "input"))
            raise self.error(("defense", "stage"), f"expected weights or input, got {stage!r}.{hint}")
        if stage == "weights" and "sanitizer" in data:
            raise self.error(("defense", "sanitizer"), "belongs to a defense of inputs; write `stage: input` beside it")
        if stage == "input" and "sanitizer" in data and (odd := [key for key in FOUR if key in data]):
            does = "belongs to a defense of weights; one of inputs has a `sanitizer:` alone"
            raise self.error(("defense", odd[0]), f"{does} (null takes a key back)")
        path: Path_ = ("defense",)
        return self.keys(InputDefenseKeys, data, path) if stage == "input" else self.keys(DefenseKeys, data, path)

    def sanitizer(self, spec: Spec, path: Path_) -> Defense:
        """An input-level defense. ``model`` stands among the sanitizer's parameters and is none: it is looked up."""
        given = {"name": spec} if isinstance(spec, str) else dict(spec)
        name, model = given.get("name"), None
        if isinstance(name, str) and name in self.host.names("sanitizer"):
            found = cast(type[Sanitizer], self.at((*path, "name"), lambda: self.host.find("sanitizer", name)))
            reads = found.reads_with_language_model
            if reads and not isinstance(model := given.pop("model", None), str | dict):
                wanted = "a causal language model: a folder, or owner/name@revision"
                raise self.error((*path, "model"), f"{name!r} needs `model:`, {wanted}")
        named = self.part(Sanitizer, given, path)
        return Defense(sanitizer=named, language_model=self.model(model, (*path, "model")) if model else None)

    def defense(self, keys: DefenseKeys | InputDefenseKeys) -> Defense:
        if isinstance(keys, InputDefenseKeys):
            return self.sanitizer(keys.sanitizer, ("defense", "sanitizer"))
        defense = Defense(
            estimator=None
            if keys.estimator is None
            else self.part(Estimator, keys.estimator, ("defense", "estimator")),
            scorer=None if keys.scorer is None else self.part(Scorer, keys.scorer, ("defense", "scorer")),
            selector=None if keys.selector is None else self.part(Selector, keys.selector, ("defense", "selector")),
            purifier=self.purifier(keys.purifier, ("defense", "purifier")),
        )
        self.takes(defense, ("defense",))
        self.needs(defense, ("defense", "scorer"))
        return defense

    def takes(self, defense: Defense, path: Path_) -> None:
        """Refuse what can't select: a scorer or a selector alone, or weight steps with neither."""
        if (defense.scorer is None) != (defense.selector is None):
            missing, other = ("selector", "scorer") if defense.selector is None else ("scorer", "selector")
            raise self.error((*path, other), f"needs a `{missing}:` beside it; a defense has both or neither")
        weight_steps = [step.name for step in defense.purifier if isinstance(step.component, WeightStep)]
        if defense.selector is None and weight_steps:
            does = f"{listing(weight_steps)} changes selected weights, and nothing is selected"
            raise self.error((*path, "purifier"), f"{does}; write a `scorer:` and a `selector:`")

    def purifier(self, specs: list[Spec], path: Path_) -> tuple[Named, ...]:
        return tuple(self.part(Purifier, spec, (*path, i)) for i, spec in enumerate(specs))

    def needs(self, defense: Defense, path: Path_) -> None:
        if defense.scorer is None:
            return
        scorer = cast(Scorer, defense.scorer.component)
        provided = cast(Estimator, defense.estimator.component).provides if defense.estimator else frozenset()
        if missing := scorer.needs - provided:
            has = (
                f"{defense.estimator.name!r} provides {listing(sorted(provided))}"
                if defense.estimator
                else "there is none"
            )
            raise self.error(
                path,
                f"the scorer {defense.scorer.name!r} needs {listing(sorted(missing))} from an estimator; {has} "
                f"(estimators: {listing(self.host.names('estimator'))})",
            )

    def metrics(self, specs: list[Spec] | None, attack: Named | None) -> tuple[Named, ...]:
        """What was asked for, held against the attack; where nothing was, what suits it."""
        biased = attack is not None and cast(Attack, attack.component).aim() is None
        suited: list[Spec] = ["acc", "bacc" if biased else "asr"]
        found = tuple(self.part(Metric, spec, ("metrics", i)) for i, spec in enumerate(specs or suited))
        who = repr(attack.name) if attack else "a known trigger"
        for i, named in enumerate(found):
            about = cast(Metric, named.component).about
            if about == "backdoor" and biased:
                why = f"{named.name!r} counts answers with the label that an attack aims at, and {who} aims at none"
            elif about == "bias" and not biased:
                why = f"{named.name!r} is about biases, on triggered rows of every label, and {who} aims at one label"
            else:
                continue
            raise self.error(("metrics", i), f"{why} (without `metrics:` it is {listing(map(str, suited))})")
        return found

    def rule(self, spec: dict[str, Any] | None, defense: Defense) -> Named | None:
        if spec is None:
            return None
        path: Path_ = ("defense", "choose")
        named = self.part(Rule, spec, path, "rule")
        rule = cast(Rule, named.component)
        self.at((*path, "over"), lambda: defense.at(rule.over, 0.0))
        for i, value in enumerate(rule.values):
            self.at((*path, "values", i), partial(defense.at, rule.over, value))
        return named

    def compared(self, keys: DefenseKeys | InputDefenseKeys) -> Mapping[str, Mapping[str, Spec | list[Spec]]]:
        """What is reported beside the defense; chance is no rival of a defense that takes nothing."""
        if isinstance(keys, InputDefenseKeys):
            return keys.compare
        return {} if keys.selector is None and "compare" not in keys.model_fields_set else keys.compare

    def compare(
        self, specs: Mapping[str, Mapping[str, Spec | list[Spec]]], defense: Defense, choose: Named | None
    ) -> dict[str, Defense]:
        kinds: dict[str, type[Component]] = {"estimator": Estimator, "scorer": Scorer, "selector": Selector}
        expected = ["sanitizer"] if defense.sanitizer else [*kinds, "purifier"]
        made = {}
        for name, parts in specs.items():
            path: Path_ = ("defense", "compare", name)
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,79}", name):
                raise self.error(path, f"expected a name of letters, digits, blanks and . _ + -, got {name[:80]!r}")
            if (name in TAKEN or name.startswith("trial ")) and name != "random":
                raise self.error(path, f"{name!r} is the name of a model that every run reports")
            changes: dict[str, Any] = {}
            for part, spec in parts.items():
                if part not in expected:
                    hint = nearest(part, expected)
                    wanted = ", ".join(expected[:-1]) + " or " * (len(expected) > 1) + expected[-1]
                    raise self.error((*path, part), f"expected {wanted}.{hint}")
                if part == "purifier":
                    changes[part] = self.purifier(spec if isinstance(spec, list) else [spec], (*path, part))
                elif isinstance(spec, list):
                    raise self.error((*path, part), "expected one, not a list")
                elif part == "sanitizer":
                    other = self.sanitizer(spec, (*path, part))
                    changes |= {"sanitizer": other.sanitizer, "language_model": other.language_model}
                else:
                    changes[part] = self.part(kinds[part], spec, (*path, part))
            made[name] = replace(defense, **changes)
            self.takes(made[name], path)
            self.needs(made[name], path)
            if choose:
                self.at(path, partial(made[name].at, cast(Rule, choose.component).over, 0.0))
        return made

    # -- paths -----------------------------------------------------------------------------------------------------

    def resolve(self, name: str, path: Path_) -> Path:
        """A path as its place means it: from the folder of the file it stands in, or from here in a setting."""

        def found() -> Path:
            try:
                found = (self.document.place(path).folder / environment_path(name)).resolve()
                str(found).encode()  # what is no text can't be written down again
                return found
            except (ValueError, RuntimeError, OSError) as error:  # a zero byte, a loop of links
                raise UsageError(f"{name!r} is no path ({error})") from error

        return self.at(path, found)

    def is_file(self, path: Path) -> None:
        if not path.is_file():
            beside = [p.name for p in path.parent.glob("*.py")]
            raise UsageError(f"there is no file {path}.{nearest(path.name, beside)}")

    def local(self, name: str, path: Path_) -> Path | None:
        found = self.resolve(name, path)
        return found if found.exists() or name.startswith((".", "/", "~", "$")) else None


def _is_union_tag(part: str | int) -> bool:
    """Whether a part of pydantic's location is the name of a type it tried (`str`, `dict[str,any]`), not a key."""
    return isinstance(part, str) and (part in ("str", "int", "float") or "[" in part)


def explain(error: Any, model: type[BaseModel]) -> str:
    """One of pydantic's errors in words: what was expected, what was got, what is close."""
    if error["type"] == "extra_forbidden":
        typed, known = str(error["loc"][-1]), model.model_fields
        return f"unknown key.{nearest(typed, known)} (known: {listing(known, 20)})"
    if error["type"] == "missing":
        return "this key is missing"
    text = str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][0]) if error["loc"] else ""
    meaning = model.model_fields[name].description if name in model.model_fields else None
    got = json.dumps(error["input"], ensure_ascii=False, default=str)
    return f"{text[:1].lower()}{text[1:]}, got {got[:80]}" + (f" ({name}: {meaning})" if meaning else "")
