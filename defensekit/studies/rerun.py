"""A finished run, repeated from what its result recorded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from defensekit.components import Observer
from defensekit.pipeline.identity import identity
from defensekit.pipeline.run import run
from defensekit.recipe import yaml_document
from defensekit.recipe.loader import load_recipe
from defensekit.result.schema import Result, read_result

# What is not compared as a number: where and how a run went, and what is compared on its own.
APART = {
    "identity", "identified", "study", "axes", "examples", "warnings", "recipe", "stages", "environment", "folder",
}  # fmt: skip


@dataclass(frozen=True)
class Repeated:
    """A result and the same run done again: what differs, as ``(place, before, after)``.

    ``inputs`` are what decides the numbers (none differs where it is the same run), ``numbers`` is all that was found
    but seconds: metrics with their intervals, trials, what was chosen, the floor, oracles; ``stages`` are the digests
    of what stages made, ``surroundings`` versions and the machine.
    """

    before: Result
    after: Result
    inputs: list[tuple[str, Any, Any]]
    numbers: list[tuple[str, Any, Any]]
    stages: list[tuple[str, Any, Any]]
    surroundings: list[tuple[str, Any, Any]]

    @property
    def same(self) -> bool:
        """Whether everything came out again: every number to the last digit, every stage's files."""
        return not (self.inputs or self.numbers or self.stages)


def rerun(path: str | Path, workspace: str | Path, observers: Sequence[Observer] = ()) -> Repeated:
    """Repeat a finished run in a workspace (an empty one, for everything to be computed again) and compare.

    Raises:
        UsageError: the file is no result, or what its recipe names is not there any more.
        DefenseKitError: a stage failed.
    """
    before = read_result(path)
    with TemporaryDirectory() as scratch:  # the name is the file's word, and a workspace may hold a recipe of that name
        recipe = Path(scratch) / "recipe.yaml"
        recipe.write_text(yaml_document.dump(before.recipe), encoding="utf-8")
        after = run(load_recipe(recipe), workspace, observers)
    return Repeated(
        before,
        after,
        list(differences(_inputs(before), _inputs(after))),
        list(differences(_numbers(before), _numbers(after))),
        list(_stages(before, after)),
        list(differences(_surroundings(before), _surroundings(after))),
    )


def _inputs(result: Result) -> dict[str, Any]:
    facts = result.identified
    # What was identified has to be what the result is known by.
    return facts if result.identity == identity(facts) else {**facts, "identity": result.identity}


def _numbers(result: Result) -> Any:
    return _timeless(result.model_dump(exclude=APART))


def _timeless(data: Any) -> Any:
    """Plain data without the seconds and the memory that anything took."""
    if isinstance(data, dict):
        return {key: _timeless(value) for key, value in data.items() if key not in ("seconds", "peak_memory")}
    return [_timeless(value) for value in data] if isinstance(data, list | tuple) else data


def _stages(before: Result, after: Result) -> Iterator[tuple[str, Any, Any]]:
    """Stages that made other files, as far as both digests are known."""
    digests = {stage.key: stage.digest for stage in after.stages}
    for stage in before.stages:
        if stage.key not in digests or (stage.digest and digests[stage.key] not in (None, stage.digest)):
            yield stage.title, stage.digest, digests.get(stage.key)


def _surroundings(result: Result) -> dict[str, Any]:
    return result.environment.model_dump(exclude={"plugins"})


def differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where plain data differ: dotted path, one value, the other (None for what is missing)."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            yield from differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after):
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differences(old, new, f"{path}.{i}")
    elif before != after:
        yield path, before, after
