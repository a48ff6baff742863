"""The folder of a run: resolved recipe, log, purified model, and last the result."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from defensekit.components import Observer
from defensekit.models.manifest import MODEL_MANIFEST, read_manifest, write_manifest
from defensekit.pipeline.graph import Stage
from defensekit.recipe import yaml_document
from defensekit.recipe.recipe import Recipe
from defensekit.result.model_card import CARD, card
from defensekit.result.schema import Result
from defensekit.utils.files import atomic_write, data_digest, environment_path, file_digests, folder_lock, literal_path
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
    plugins = [environment_path(text) for text in result.recipe.get("plugins", ())]
    copies = plugin_copies([file.name for file in plugins])
    for file, copy in zip(plugins, copies, strict=True):
        atomic_write(folder / copy, file.read_bytes())
    # It names the copies: the folder may be moved, and run where the files themselves are not.
    named = {"plugins": [literal_path(f"./{copy}") for copy in copies]} if copies else {}
    atomic_write(folder / "recipe.yaml", yaml_document.dump({**result.recipe, **named}).encode())
    if stage:
        _write_model(folder / "purified", stage, files, result)
    atomic_write(folder / "result.json", result.model_dump_json(indent=1).encode())


def plugin_copies(names: Sequence[str]) -> list[Path]:
    """Where in its folder a run has copies of its plugin files; two of these may have one name."""
    return [Path("plugins", *([str(number)] if len(names) > 1 else []), name) for number, name in enumerate(names)]


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
