"""From YAML to a study: the runs of a matrix, each a recipe."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, cast

from defensekit.components import Executor, Observer
from defensekit.recipe import yaml_document
from defensekit.recipe.loader import KEPT, recipe_of
from defensekit.recipe.reader import Reader
from defensekit.recipe.recipe import NamedComponent, Recipe
from defensekit.recipe.yaml_document import Document, Path_, moved, overlay, setting
from defensekit.studies.keys import Label, StudyKeys, no_recipe
from defensekit.utils.errors import PlacedError, UsageError, choices, listing, nearest
from defensekit.utils.files import environment_path, file_there

Axes = dict[str, Label]

RUNS = 100_000  # of a study, before any is left out

NO_AXIS = {
    "seed": "`seeds:` says which there are",
    "name": "a run is known by its values on the axes",
    "executor": "a study has one, under `executor:`",
    "observers": "a study has its own, under `observers:`",
    "extends": "a recipe's file says what it builds on",
}


@dataclass(frozen=True)
class StudyRun:
    """One run of a study: its value on every axis that it lies on (the seed is one of the recipe's keys)."""

    axes: Axes
    recipe: Recipe

    def __str__(self) -> str:
        return ", ".join([*(str(label) for label in self.axes.values()), f"seed {self.recipe.seed}"])


@dataclass(frozen=True)
class Study:
    """A study with every run's recipe built."""

    keys: StudyKeys
    axes: dict[str, list[Label]]
    executor: NamedComponent[Executor]
    observers: tuple[NamedComponent[Observer], ...]
    runs: Sequence[StudyRun]
    document: Document = field(compare=False)

    @property
    def name(self) -> str:
        """Names the folder."""
        return self.keys.name


def load_study(
    path: str | Path, settings: str | Sequence[str] = (), *, announce: Callable[[str], None] = lambda text: None
) -> Study:
    """Read and check a study, with settings laid over it.

    Args:
        path: the YAML file.
        settings: values that replace those of the file, such as ``seeds=[0,1]``.
        announce: takes a line about every local plugin file, before it is loaded.

    Returns:
        The study, with the recipe of every run.

    Raises:
        UsageError: with file, line and key, what was expected and what is close to what was typed; a value of the
            matrix that makes no recipe is reported with the run that it would make.
    """
    given = [settings] if isinstance(settings, str) else settings
    document = yaml_document.load(Path(path))
    document.check_mapping(StudyKeys.model_fields)
    matrix = document.data.get("matrix")
    axes = [str(axis) for axis in matrix] if isinstance(matrix, dict) else []
    placed = [_placed(text, axes) for text in given]
    if isinstance(document.data.get("recipe"), str):
        for one in placed:
            if isinstance(one.data.get("recipe"), dict):
                does = "the study's recipe is a file, which no setting reaches into; name one that extends it"
                raise PlacedError(f"{one.name}: {does}, by `recipe=FILE`")
    kept = {("recipe", *keys): those for keys, those in KEPT.items()}
    return study_of(yaml_document.load(Path(path), placed, kept), announce)


def _placed(text: str, axes: Sequence[str]) -> Document:
    """A setting; the name of an axis has dots of its own, as in ``matrix.defense.scorer=[random]``."""
    document = setting(text)
    section, *inner = text.partition("=")[0].strip().split(".")
    if section != "matrix" or not inner:
        return document
    keys = ".".join(inner)
    axis = max((axis for axis in axes if f"{keys}.".startswith(f"{axis}.")), key=len, default=keys)
    below = keys[len(axis) + 1 :]
    return moved(document, (section, *inner), (section, axis, *(below.split(".") if below else ())))


def study_of(document: Document, announce: Callable[[str], None] = lambda text: None) -> Study:
    """Check a document, and build its study; ``announce`` is that of `load_study`.

    Raises:
        UsageError: as `load_study`.
    """
    document.check_mapping(StudyKeys.model_fields)
    no_recipe(document.data, document.location(()))
    return _Matrix(document, announce).study()


class _Matrix:
    """Turns a document into runs."""

    def __init__(self, document: Document, announce: Callable[[str], None]) -> None:
        self.document = document
        self.announce = announce
        self.known: dict[Hashable, Any] = {}
        self.reader = Reader(document, self.known)
        self.keys = self.reader.keys(StudyKeys, document.data, ())
        for i, seed in enumerate(self.keys.seeds):
            if seed in self.keys.seeds[:i]:
                raise self.reader.error(("seeds", i), f"{seed} is duplicated")

    def study(self) -> Study:
        base = self.base()
        axes = {axis: self.values(axis) for axis in self.keys.matrix}
        if not isinstance(base.data, dict) or "name" not in base.data:
            base = overlay(base, moved(self.document, ("name",), ("name",)), {})
        size = prod(map(len, axes.values())) * len(self.keys.seeds)
        if size > RUNS:
            raise self.reader.error(("matrix",), f"{size:,} combinations of axes and seeds; at most {RUNS:,}")
        documents = [*self.matrix(base, axes), *self.included(base, axes)]
        if not documents:
            why = "every run of the matrix is left out; take one back, or name runs under `include:`"
            raise self.reader.error(("exclude",), why)
        first = self.recipe(*documents[0])
        # Plugins are the recipe's, and a study's executor and observers may come from them.
        self.reader.host = first.host
        executor = self.reader.part(Executor, self.keys.executor, ("executor",))
        observers = [self.reader.part(Observer, spec, ("observers", i)) for i, spec in enumerate(self.keys.observers)]
        runs, seen = [], set()
        for labels, document in documents:
            recipe = replace(self.recipe(labels, document), executor=executor, observers=())
            self.may_vary(labels, recipe)
            if (combination := tuple(labels.items())) in seen:
                raise self.reader.error(("include",), f"the run {_called(labels)} is duplicated")
            seen.add(combination)
            runs += [StudyRun(labels, replace(recipe, seed=seed)) for seed in self.keys.seeds]
        axis_labels = {axis: list(values) for axis, values in axes.items()}
        return Study(self.keys, axis_labels, executor, tuple(observers), runs, self.document)

    def base(self) -> Document:
        """The recipe that every run starts from."""
        if isinstance(self.keys.recipe, dict):
            if "extends" in self.keys.recipe:
                why = "a recipe that builds on another one is a file; name it here, as in `recipe: mine.yaml`"
                raise self.reader.error(("recipe", "extends"), why)
            return moved(self.document, ("recipe",), ())
        location = self.document.place(("recipe",))
        named = self.keys.recipe

        def file() -> Path:
            return file_there(named, location.folder / environment_path(named), ".yaml")

        return yaml_document.load(self.reader.at(("recipe",), file), (), KEPT)

    def values(self, axis: str) -> dict[Label, list[Document]]:
        """Every value of an axis, by its label, as what it lays over a recipe, one after the other."""
        entries, path = self.keys.matrix[axis], ("matrix", axis)
        values: dict[Label, list[Document]] = {}
        keys: Sequence[str | int] = list(entries) if isinstance(entries, dict) else range(len(entries))
        for key in keys:
            label: Label
            if isinstance(entries, dict):
                label, over = str(key), self.variant((*path, key))
            else:
                label, over = label_of(entries[cast(int, key)]), [moved(self.document, (*path, key), _path(axis))]
                self.reader.at(path, partial(self.may_change, _path(axis)))
            if label in values:
                raise self.reader.error((*path, key), f"two values are called {label!r}; name them as variants")
            values[label] = over
        if not values:
            raise self.reader.error(path, "an axis needs values")
        return values

    def variant(self, path: Path_) -> list[Document]:
        """Several paths of a recipe, changed at once; each over the recipe itself, where null takes a key back."""
        changes = cast(dict[str, dict[str, dict[str, Any]]], self.keys.matrix)[cast(str, path[1])][cast(str, path[2])]
        for dotted in changes:
            self.reader.at((*path, dotted), partial(self.may_change, _path(dotted)))
        return [moved(self.document, (*path, dotted), _path(dotted)) for dotted in changes]

    def may_change(self, path: Path_) -> None:
        """Raise UsageError where a key of a recipe is no axis."""
        if (key := str(path[0])) in NO_AXIS:
            raise UsageError(f"{key!r} is no axis: {NO_AXIS[key]}")

    def may_vary(self, labels: Axes, recipe: Recipe) -> None:
        """Raise UsageError where an axis sets what the recipe's rule chooses: its runs would all be the same."""
        choose = recipe.choose
        over = choose.component.over if choose else ""
        if choose and (axis := f"defense.{over}") in self.keys.matrix and axis in labels:
            raise self.reader.error(
                ("matrix", axis),
                f"the rule {choose.name!r} chooses this, so the axis has no effect (in the run {_called(labels)}); "
                "vary `defense.choose.values`, or take the rule back with `choose: null` in the recipe",
            )

    def matrix(
        self, base: Document, axes: Mapping[str, dict[Label, list[Document]]]
    ) -> Iterator[tuple[Axes, Document]]:
        """Every run of the matrix but those left out."""
        excluded = [self.chosen(entry, axes, ("exclude", i)) for i, entry in enumerate(self.keys.exclude)]

        def expand(labels: Axes, document: Document, rest: list[str]) -> Iterator[tuple[Axes, Document]]:
            if any(entry.items() <= labels.items() for entry in excluded):
                return
            if not rest:
                yield labels, document
                return
            for label, over in axes[rest[0]].items():
                yield from expand({**labels, rest[0]: label}, laid(document, over), rest[1:])

        if axes or not self.keys.include:
            yield from expand({}, base, list(axes))

    def included(
        self, base: Document, axes: Mapping[str, dict[Label, list[Document]]]
    ) -> Iterator[tuple[Axes, Document]]:
        """Runs beside the matrix; on an axis that one does not name it is as the recipe is."""
        for i, entry in enumerate(self.keys.include):
            document, labels = base, {}
            for axis, value in entry.items():
                path: Path_ = ("include", i, axis)
                label = label_of(value)
                if axis in axes and label in axes[axis]:
                    over = axes[axis][label]
                elif axis in axes and isinstance(self.keys.matrix[axis], dict):
                    raise self.reader.error(path, f"unknown variant.{choices(str(label), map(str, axes[axis]))}")
                else:
                    self.reader.at(path, partial(self.may_change, _path(axis)))
                    over = [moved(self.document, path, _path(axis))]
                labels[axis] = label
                document = laid(document, over)
            order = [*axes, *(axis for axis in labels if axis not in axes)]
            yield {axis: labels[axis] for axis in order if axis in labels}, document

    def chosen(self, entry: Mapping[str, Label], axes: Mapping[str, dict[Label, list[Document]]], path: Path_) -> Axes:
        for axis, label in entry.items():
            if axis not in axes:
                known = listing(axes, 20)
                raise self.reader.error((*path, axis), f"there is no such axis.{nearest(axis, axes)} (axes: {known})")
            if label not in axes[axis]:
                labels = [str(label) for label in axes[axis]]
                raise self.reader.error(
                    (*path, axis),
                    f"there is no value {label!r}.{nearest(str(label), labels)} (values: {listing(labels)})",
                )
        return dict(entry)

    def recipe(self, labels: Axes, document: Document) -> Recipe:
        try:
            return recipe_of(document, self.known, announce=self.announce)
        except PlacedError as error:
            raise PlacedError(f"{error} (in the run {_called(labels)})") from error


def laid(document: Document, over: Sequence[Document]) -> Document:
    """A recipe with changes laid over it."""
    for change in over:
        document = overlay(document, change, KEPT)
    return document


def _path(axis: str) -> Path_:
    return tuple(axis.split("."))


def _called(labels: Axes) -> str:
    return ", ".join(f"{axis} = {label}" for axis, label in labels.items()) or "of the recipe"


def label_of(value: Any) -> Label:
    """What a value of an axis is called in tables: itself, ``name(parameter=value)``, or several of these."""
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list):
        return " + ".join(str(label_of(item)) for item in value)
    if isinstance(value, dict):
        rest = ", ".join(f"{key}={label_of(item)}" for key, item in value.items() if key not in ("name", "rule"))
        name = str(value.get("name", value.get("rule", "")))
        return f"{name}({rest})" if rest and name else name or rest
    return "none"
