"""The folder of a run: resolved recipe, log, purified model, and last the result."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from defensekit.components import Observer
from defensekit.models.manifest import MODEL_MANIFEST, read_manifest, write_manifest
from defensekit.pipeline.graph import Stage
from defensekit.recipe import yaml_document
from defensekit.recipe.recipe import Recipe
from defensekit.result.model_card import CARD, card
from defensekit.result.schema import Result
from defensekit.utils.files import atomic_write, data_digest, environment_path, file_digests, folder_lock
from defensekit.utils.logging import log


class Log(Observer):
    """Writes events into the log."""

    def message(self, text: str) -> None:
        """Log a message."""
        log.info("%s", text)

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        """Log a finished stage."""
        log.info("%s: %s", title, "reused" if reused else f"{seconds:.1f} s")


def folder_of(recipe: Recipe, workspace: Path) -> Path:
    """The folder of a recipe's run: the same one for the same recipe, and no other recipe's."""
    return workspace / "runs" / f"{recipe.name}-{data_digest(recipe.resolved())[:8]}"


def write(result: Result, stage: Stage | None, files: Callable[[Stage], Path]) -> None:
    """Write everything but the log.

    Args:
        result: the result of the run.
        stage: the stage of the purified model; None for a defense without one.
        files: gives the files of a stage, computing it if it is not cached.
    """
    folder = Path(result.folder)
    atomic_write(folder / "recipe.yaml", yaml_document.dump(result.recipe).encode())
    for number, file in enumerate(map(environment_path, result.recipe.get("plugins", ()))):
        # Two files may have one name.
        place = folder / "plugins" / str(number) if len(result.recipe["plugins"]) > 1 else folder / "plugins"
        atomic_write(place / file.name, file.read_bytes())
    if stage:
        _write_model(folder / "purified", stage, files, result)
    atomic_write(folder / "result.json", result.model_dump_json(indent=1).encode())


def _write_model(purified: Path, stage: Stage, files: Callable[[Stage], Path], result: Result) -> None:
    folder = purified.parent
    with folder_lock(purified, wait=True):  # the same run in another process ends at the same moment
        for left in folder.glob(".purified.*.part"):  # left by a killed run
            shutil.rmtree(left, ignore_errors=True)
        text = card(result).encode()
        if not _is_whole(purified, stage.key, text):
            part = folder / f".purified.{os.getpid()}.part"
            try:
                shutil.copytree(files(stage), part)
                atomic_write(part / CARD, text)
                write_manifest(part, stage=stage.key)
                shutil.rmtree(purified, ignore_errors=True)
                part.rename(purified)
            finally:
                shutil.rmtree(part, ignore_errors=True)


def _is_whole(purified: Path, key: str, card: bytes) -> bool:
    """Whether a folder has the purified model of a stage and this card, complete and unchanged."""
    manifest = read_manifest(purified)
    if manifest.get("stage") != key or not (purified / CARD).is_file() or (purified / CARD).read_bytes() != card:
        return False
    digests = file_digests(purified)
    digests.pop(MODEL_MANIFEST)
    return bool(manifest.get("files") == digests)
