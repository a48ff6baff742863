"""A finished run, repeated from what its result recorded."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from defensekit.components import Observer
from defensekit.pipeline.identity import identity
from defensekit.pipeline.run_folder import plugin_copies
from defensekit.recipe import yaml_document
from defensekit.result.schema import Result, read_result
from defensekit.studies.again import run_apart
from defensekit.studies.folder import Folder
from defensekit.utils.errors import UsageError, printable_name
from defensekit.utils.files import environment_path, file_digest, literal_path

# What a result claims and a run can't give again: where, when and in what study it was run.
CLAIMED = ("study", "axes", "folder", "seconds")
# What is not compared as a number: that, and what is compared on its own.
APART = {*CLAIMED, "identity", "identified", "recipe", "stages", "warnings", "environment"}
# What anything took.
TAKEN = ("seconds", "milliseconds", "peak_memory")
# Executors of this machine; one that reaches others has to be trusted by name.
HERE = ("auto", "in-process", "local")


@dataclass(frozen=True)
class Repeated:
    """A result and the same run done again: what differs, as ``(place, before, after)``.

    ``inputs`` are what decides the numbers (none differs where it is the same run), ``numbers`` is all that was found
    but seconds: metrics with their intervals, trials, what was chosen, the floor, oracles, examples; ``stages`` are
    the digests of what stages made, ``surroundings`` versions, plugins, warnings and the machine. What is in
    ``CLAIMED``, and every number of seconds and of bytes of memory, stays what the result claims.
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


def rerun(
    path: str | Path, workspace: str | Path, observers: Sequence[Observer] = (), trusted: Sequence[str] = ()
) -> Repeated:
    """Repeat a finished run in a workspace (an empty one, for everything to be computed again) and compare.

    The run happens in another process; this one, which compares, loads no local plugin.

    Args:
        path: the file of a result, of anybody's.
        workspace: where it is run.
        observers: are notified of progress.
        trusted: plugin files, files, folders and hub ids that the result names and that may be loaded or opened.

    Raises:
        UsageError: the file is no result, names what is not trusted, or what its recipe names is not there any more.
        DefenseKitError: a stage failed.
    """
    before = read_result(path)
    recipe = {key: value for key, value in before.recipe.items() if key != "observers"}
    if isinstance(plugins := recipe.get("plugins"), list):
        recipe["plugins"] = _there(plugins, Path(path).resolve(), before)
    if "extends" in recipe:
        raise UsageError(f"{path}: its recipe has `extends`; a result holds a whole recipe")
    if len(json.dumps(recipe)) > yaml_document.BYTES:
        raise UsageError(f"{path}: a recipe of more than {yaml_document.BYTES:,} bytes; refused")
    executor = recipe.get("executor", HERE[0])
    name = executor.get("name") if isinstance(executor, dict) else executor
    if name not in (*HERE, *trusted):
        raise UsageError(
            f"{path}: it ran on the executor {printable_name(name)}; to use it, add --trust {printable_name(name)!r}"
        )
    with TemporaryDirectory() as scratch:  # the name is the file's word, and a workspace may hold a recipe of that name
        file = Path(scratch) / "recipe.yaml"
        file.write_text(yaml_document.dump(recipe), encoding="utf-8")
        after = read_result(run_apart(file, Path(workspace), trusted, observers))
    shown = after.examples[: len(before.examples)]  # a study's results show none
    return Repeated(
        before,
        after,
        list(differences(_inputs(before), _inputs(after))),
        list(differences(_numbers(before), _numbers(after.model_copy(update={"examples": shown})))),
        list(_stages(before, after)),
        list(differences(_surroundings(before), _surroundings(after))),
    )


def _there(plugins: list[Any], path: Path, result: Result) -> list[Any]:
    """Plugin files as a result names them; for one that is gone, the copy that was kept beside the result.

    It has to be what was run, by the digest that the result has of its components' source.
    """
    parts = result.identified.get("parts")
    each = parts.values() if isinstance(parts, dict) else ()
    sources = [part.get("source") for part in each if isinstance(part, dict)]
    ran = {text for text in sources if isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text)}
    named = [environment_path(text) if isinstance(text, str) else Path() for text in plugins]
    beside = [path.parent / copy for copy in plugin_copies([file.name for file in named])]
    there = []
    for text, file, own in zip(plugins, named, beside, strict=True):
        kept = [own, *(Folder.at(path.parent.parent).copy_plugin(digest, file.name) for digest in ran)]
        copy = next((one for one in kept if file.name and one.is_file() and file_digest(one) in ran), None)
        there.append(text if copy is None or file.exists() else literal_path(copy.resolve()))
    return there


def _inputs(result: Result) -> dict[str, Any]:
    facts = result.identified
    # What was identified has to be what the result is known by.
    return facts if result.identity == identity(facts) else {**facts, "identity": result.identity}


def _numbers(result: Result) -> Any:
    return _timeless(result.model_dump(exclude=APART))


def _timeless(data: Any) -> Any:
    """Plain data without the seconds and the memory that anything took."""
    if isinstance(data, dict):
        return {key: _timeless(value) for key, value in data.items() if key not in TAKEN}
    return [_timeless(value) for value in data] if isinstance(data, list | tuple) else data


def _stages(before: Result, after: Result) -> Iterator[tuple[str, Any, Any]]:
    """Stages of one run alone, or that made other files, as far as both digests are known."""
    ours, theirs = ({stage.key: stage for stage in result.stages} for result in (before, after))
    for key in dict.fromkeys((*ours, *theirs)):
        old, new = ours.get(key), theirs.get(key)
        if old is None or new is None:
            yield (old or new).title, old and (old.digest or key), new and (new.digest or key)  # type: ignore[union-attr]
        elif (old.title, old.kind) != (new.title, new.kind):
            yield old.title, f"{old.kind}: {old.title}", f"{new.kind}: {new.title}"
        elif old.digest and new.digest not in (None, old.digest):
            yield old.title, old.digest, new.digest


def _surroundings(result: Result) -> dict[str, Any]:
    return {**result.environment.model_dump(), "warnings": result.warnings}


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
