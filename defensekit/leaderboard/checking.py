"""Checking a row without computing: nothing that came with it is run, and no model is opened.

What can't be seen here is left to `verifying`: answers that were made up with everything else of the row to fit them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import isclose
from pathlib import Path
from typing import Any

from defensekit.components import Measured, Metric, Predictions
from defensekit.host.discovery import cached_plugins
from defensekit.leaderboard.answers import answers_file, malformed
from defensekit.leaderboard.composition import defense_of
from defensekit.leaderboard.freezing import digest_of_labels, digest_of_rows
from defensekit.leaderboard.identity import disagreements, parts_of
from defensekit.leaderboard.keys import UNPOISONED
from defensekit.leaderboard.row import Row, Verification, models_of, read_row
from defensekit.leaderboard.tracks import Cell, Track
from defensekit.pipeline.identity import identity
from defensekit.pipeline.predictions import only_answer
from defensekit.recipe.keys import Sizes
from defensekit.recipe.resolve import component
from defensekit.recipe.submission import CODE
from defensekit.result.schema import Result
from defensekit.utils.errors import DefenseKitError, UsageError, lacks_memory, listing, one_line, printable_name
from defensekit.utils.files import data_digest, file_digest
from defensekit.utils.seeds import Seeds

# The kinds of stages that a defense computes, and those of these kinds that are none of its own, by title.
COSTS = {
    "plant", "control", "screen", "judge", "statistics", "purify", "inspect", "sanitize", "features", "score", "train",
}  # fmt: skip
_ALWAYS = {"stage", "refit"}  # what a resolved defense has, said or not
OTHERS = ("fine-tuned only", "clean reference", "suspect", "from the base")


@dataclass
class Checker:
    """Checks rows of a track. Answers that many rows share, those of suspects, are ``measured`` once."""

    track: Track
    measured: dict[tuple[Any, ...], Measured] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)

    def check(self, folder: Path) -> Row:
        """Read a row, and compare everything in it with everything else and with the track.

        Returns:
            The row.

        Raises:
            DefenseKitError: the first thing that is wrong.
        """
        row = read_row(folder)
        for problem in self.problems(row):
            raise DefenseKitError(f"{folder}: {problem}")
        return row

    def problems(self, row: Row) -> Iterator[str]:
        """What is wrong with a row."""
        if (row.record.track, row.record.track_digest) != (self.track.name, self.track.digest):
            yield f"its track is {row.record.track} ({row.record.track_digest[:12]}), expected {self.track.name} " \
                  f"({self.track.digest[:12]})"  # fmt: skip
            return
        folder = Path(os.path.normpath(row.folder.absolute()))
        if folder.is_symlink():
            yield "it is a link; expected a folder"
            return
        if (folder.parent.name, folder.name) != (row.record.track, row.record.entry):
            yield f"its folder is no {printable_name(f'{row.record.track}/{row.record.entry}')}, as its record has it"
            return
        for cell in dict.fromkeys((*self.track.cells, *row.cells)):
            if cell not in row.cells:
                yield f"the cell {_called(cell)} is missing"
            elif cell not in self.track.cells:
                yield f"the cell {_called(cell)} is none of the track's"
            else:
                for problem in self._cell(row, cell, row.cells[cell]):
                    yield f"{_called(cell)}: {problem}"
        yield from self._one_defense(row)
        yield from self._verifications(row)
        answers = {answers_file(key) for result in row.cells.values() for key in _keys(result)}
        code = {name for name in row.record.files if name.endswith(".py")} - {row.entry.keys.plugin.file}
        if extra := sorted((row.kept.keys() - answers) | code):
            yield f"{extra[0]} belongs to no cell, and is not the entry's plugin"

    # -- one cell ------------------------------------------------------------------------------------------------------

    def _cell(self, row: Row, cell: Cell, result: Result) -> Iterator[str]:
        facts, recipe = result.identified, result.recipe
        if result.identity != identity(facts):
            yield "its identity is not the digest of what it was identified by"
        try:
            yield from disagreements(recipe, facts)
            yield from self._recipe(cell, recipe, facts)
            yield from self._entry(row, recipe, facts)
            yield from self._budget(result)
            yield from self._rows(row, cell, result)
            yield from self._numbers(row, cell, result)
        except DefenseKitError as error:  # of a metric
            yield str(error)
        except Exception as error:  # a stranger wrote it: whatever does not fit is wrong
            if lacks_memory(error):
                raise
            yield f"its record is damaged ({one_line(error)})"

    def _recipe(self, cell: Cell, recipe: dict[str, Any], facts: dict[str, Any]) -> Iterator[str]:
        """The track's part of a recipe."""
        attack, seed = cell
        part = {"attack": self.track.specs[attack], "seed": seed, "metrics": self.metrics_of(attack)}
        expected = {**self.track.keys.recipe, **part}
        if attack == UNPOISONED:
            expected.pop("retuning", None)  # there are no poisoned rows
        placed = set(places(recipe, facts))
        for place in unlike(expected, recipe):
            if place not in placed:
                yield f"{place} is not the track's"
        digests = self.track.digests
        contents = facts["contents"]
        if digests.model not in (None, contents["model"]) or digests.data != contents["data"]:
            yield "its base or its data are not the track's"
        if "compare" in recipe["defense"] and recipe["defense"]["compare"]:
            yield "it compares its defense with others; a row is one defense"

    def _entry(self, row: Row, recipe: dict[str, Any], facts: dict[str, Any]) -> Iterator[str]:
        """The defense as it was run, and as the entry has it."""
        placed, expected = set(places(recipe, facts)), defense_of(row.entry)
        for place in unlike({"defense": expected}, {"defense": recipe["defense"]}):
            if place not in placed:
                yield f"{place} is not the entry's"
        for part in sorted(recipe["defense"].keys() - expected.keys() - _ALWAYS):
            if recipe["defense"][part]:
                yield f"defense.{part} is not the entry's"
        submissions = self.track.submissions(row.entry)
        for key, name in CODE.items():
            named = [value for one in submissions if (value := getattr(one.keys.plugin, key)) is not None]
            if recipe.get(name, []) != named:
                yield f"{'its plugin' if key == 'file' else 'the distribution that it needs'} is not the entry's"
        sources = {part["source"] for part in facts["parts"].values()}
        for one in submissions:
            if one.plugin_file and file_digest(one.plugin_file) not in sources:
                yield f"it was not made with {one.plugin_file.name} as it is"

    def _budget(self, result: Result) -> Iterator[str]:
        budget, recipe = self.track.keys.budget, result.recipe
        if result.oracle or "oracle" in str(recipe["defense"].get("choose", {}).get("rule")):
            yield f"an oracle chose ({', '.join(result.oracle) or 'by its rule'})"
        used = defenders_rows(recipe)
        if used != result.clean_budget or used > budget.labelled:
            yield f"it used {result.clean_budget} labelled rows, says its recipe {used}, allowed {budget.labelled}"
        if (models := other_models(result)) > budget.models:
            yield f"it used {models} models beside suspect and base, allowed {budget.models}"
        if (seconds := sum(one or 0.0 for one in _seconds(result))) > 60 * budget.minutes:  # at least so many
            yield f"it took {seconds:.0f} s, allowed {60 * budget.minutes:g}"

    def _rows(self, row: Row, cell: Cell, result: Result) -> Iterator[str]:
        """The rows that a cell rests on, and those that were asked about."""
        attack, index = cell[0], self.track.keys.seeds.index(cell[1])
        digests = self.track.digests
        if digest_of_rows({stage.title: stage.digest for stage in result.stages}) != digests.rows[attack][index]:
            yield "the rows that it rests on are not the track's"
        stages = {stage.key for stage in result.stages}
        for name in models_of(row.entry, result):
            for on, key in result.models[name].predictions.items():
                if answers_file(key) not in row.kept:
                    yield f"the answers of {name} to {on} rows are missing"
                elif key not in stages:
                    yield f"no stage gave the answers of {name} to {on} rows"

    # -- numbers -------------------------------------------------------------------------------------------------------

    def _numbers(self, row: Row, cell: Cell, result: Result) -> Iterator[str]:
        """Every number of a cell, measured again from the answers."""
        names = set(models_of(row.entry, result))
        if result.models.keys() != names:
            yield f"it has the models {', '.join(sorted(result.models))}, expected {', '.join(sorted(names))}"
            return
        keys = [key for model in result.models.values() for key in model.predictions.values()]
        if len(set(keys)) < len(keys):
            yield "two of its models have the same answers"
        frozen = self.track.digests.labels[cell[0]][self.track.keys.seeds.index(cell[1])]
        metrics, target = self.metrics_of(cell[0]), (result.attack or {}).get("target")
        labels = tuple(result.data["labels"])
        for name, model in result.models.items():
            asked = row.answers(result, name)
            if asked.keys() != {"plain", "triggered"}:
                yield f"{name} has no answers to plain and to triggered rows"
                continue
            if problem := next((text for some in asked.values() if (text := malformed(some))), None):
                yield f"the answers of {name} are damaged ({problem})"
            elif digest_of_labels({on: _columns(some) for on, some in asked.items()}) != frozen:
                yield f"{name} was asked about other rows than the track's, or their labels were changed"
            elif (count := asked["plain"].logits.shape[1]) != sum(isinstance(one, str) for one in labels):
                yield f"{name} answers with {count} labels, and its data name {listing(labels)}"
            elif not _aims(target, asked):
                yield f"the target that it was measured by, {target!r}, is not the attack's"
            elif model.only != only_answer(replace(asked["plain"], names=labels)):
                yield f"whether {name} gives every row the same answer is not what its answers show"
            elif list(model.metrics) != [spec["name"] for spec in metrics]:
                yield f"the metrics of {name} are not the track's"
            else:
                for spec in metrics:
                    here, there = self.measure(spec, row, result, name), model.metrics[spec["name"]]
                    if not _same(here, there):
                        said = f"{spec['name']} of {name} is {there.value:.4f} in the row"
                        yield f"{said}, and {here.value:.4f} by its answers"

    def metric(self, spec: dict[str, Any]) -> Metric:
        """A metric of the track, looked up once."""
        if spec["name"] not in self.metrics:
            self.metrics[spec["name"]] = component(Metric, spec)
        return self.metrics[spec["name"]]

    def metrics_of(self, attack: str) -> list[dict[str, Any]]:
        """What the track measures of an attack."""
        keys = self.track.keys
        specs = keys.bias_metrics if attack in keys.biases else keys.recipe["metrics"]
        return [{"name": spec} if isinstance(spec, str) else spec for spec in specs]

    def measure(self, spec: dict[str, Any], row: Row, result: Result, model: str) -> Measured:
        """A metric of a model's answers."""
        context = {
            "target": (result.attack or {}).get("target"),
            "names": tuple(result.data["labels"]),
            "seed": Seeds(result.recipe["seed"]).metrics,
        }
        keys = sorted(result.models[model].predictions.items())
        digests = tuple((on, row.record.files[answers_file(key)]) for on, key in keys)
        wanted = (spec["name"], digests, *context.values())
        if wanted not in self.measured:
            metric = self.metric(spec)
            self.measured[wanted] = metric.measure(row.asked(metric.on, result, model, **context))
        return self.measured[wanted]

    # -- the row -------------------------------------------------------------------------------------------------------

    def _one_defense(self, row: Row) -> Iterator[str]:
        """Whether every cell is of the same defense, and of the same base."""
        defenses = {data_digest(result.recipe["defense"]) for result in row.cells.values()}
        bases = {result.identified["contents"]["model"] for result in row.cells.values()}
        if len(defenses) > 1 or len(bases) > 1:
            yield "its cells are of different defenses, or of different bases"

    def _verifications(self, row: Row) -> Iterator[str]:
        for one in row.verifications:
            if one.same != agreement(one, self.track):
                yield f"the verification by {one.by} says {'same' if one.same else 'differs'}, and its numbers do not"
            if any((cell.attack, cell.seed) not in self.track.cells for cell in one.cells) or not one.cells:
                yield f"the verification by {one.by} is of no cells of the track"


def agreement(verification: Verification, track: Track) -> bool:
    """Whether every cell came out again within the track's tolerance, from the same inputs."""
    limit = track.keys.tolerance.answers
    return all(max(cell.differing.values(), default=1.0) <= limit and not cell.inputs for cell in verification.cells)


def unlike(given: Any, resolved: Any, place: str = "") -> Iterator[str]:
    """Where a resolved recipe is not what was given; what was not given may be anything."""
    if isinstance(resolved, dict) and isinstance(given, str) and "name" in resolved:
        given = {"name": given}
    if isinstance(given, dict) and isinstance(resolved, dict):
        for key, value in given.items():
            yield from unlike(value, resolved.get(key), f"{place}.{key}" if place else key)
    elif isinstance(given, list) and isinstance(resolved, list) and len(given) == len(resolved):
        for i, (one, other) in enumerate(zip(given, resolved, strict=True)):
            yield from unlike(one, other, f"{place}.{i}")
    elif given != resolved:
        yield place


def places(recipe: dict[str, Any], facts: dict[str, Any]) -> Iterator[str]:
    """Parameters that say where something is, on the machine that made the row; digests of contents stand for them."""
    for key, given in parts_of(recipe):
        if facts["contents"].get(key) is not None:
            known = facts["parts"][key]["parameters"].keys() | {"name", *Sizes.model_fields}
            may_be = _locations(key, given)
            yield from (f"{key}.{name}" for name in given.keys() - known if may_be is None or name in may_be)


def _locations(key: str, given: dict[str, Any]) -> set[str] | None:
    """The parameters of a track's component that say where something is; None where its plugin is not installed."""
    kind = {"model": "model", "data": "dataset", "attack": "attack"}.get(key)
    try:
        found = cached_plugins().find(kind, given["name"]) if kind else None
    except UsageError:
        return None
    return {*found.location, *found.paths()} if found else None


def defenders_rows(recipe: dict[str, Any]) -> int:
    """How many labelled rows a recipe's defender uses."""
    defense, data = recipe["defense"], recipe["data"]
    held_out = int(data["dev"]) if "choose" in defense or defense.get("refit") else 0
    return (0 if "sanitizer" in defense else int(data["clean"])) + held_out


def other_models(result: Result) -> int:
    """How many models a defense reads, beside suspect and base: those outside the store that its parts name."""
    given, parts, count = dict(parts_of(result.recipe)), result.identified["parts"], 0
    for key, digest in result.identified["contents"].items():
        if key.startswith("defense.") and digest is not None:
            named = [given[key][name] for name in given[key].keys() - parts[key]["parameters"].keys() - {"name"}]
            count += max(sum(len(one) if isinstance(one, list) else 1 for one in named), 1)
    return count


def cost(result: Result) -> float | None:
    """The seconds of all that the defense computed, trials included; not of what is reported beside it.

    None where they are not known: what was computed was removed by a version that did not remember it.
    """
    seconds = [one for one in _seconds(result) if one is not None]
    return sum(seconds) if len(seconds) == len(_seconds(result)) else None


def _seconds(result: Result) -> list[float | None]:
    return [stage.seconds for stage in result.stages if stage.kind in COSTS and stage.title not in OTHERS]


def _columns(predictions: Predictions) -> list[list[int]]:
    columns = (predictions.ids, predictions.labels, predictions.targets)
    return [column.tolist() for column in columns if column is not None]


def _aims(target: Any, asked: dict[str, Predictions]) -> bool:
    """Whether rows were triggered for the sake of this target: the rows whose label it is are left out.

    Where triggered rows have targets of their own, and for a bias, there is none.
    """
    left_out = {*asked["plain"].labels.tolist()} - {*asked["triggered"].labels.tolist()}
    if not left_out or asked["triggered"].targets is not None:
        return target is None
    return target in left_out


def _same(here: Measured, there: Measured) -> bool:
    """Whether two measurements are the same to the digits that libraries agree on."""
    if here.rows != there.rows or here.parts.keys() != there.parts.keys():
        return False
    pairs = ((here.value, there.value), (here.low, there.low), (here.high, there.high))
    equal = all(isclose(one, other, abs_tol=1e-6) for one, other in pairs)
    return equal and all(_same(part, there.parts[name]) for name, part in here.parts.items())


def _keys(result: Result) -> set[str]:
    return {key for model in result.models.values() for key in model.predictions.values()}


def _called(cell: Cell) -> str:
    return f"{cell[0]}, seed {cell[1]}"
