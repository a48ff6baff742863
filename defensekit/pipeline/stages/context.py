"""What a stage is given: its plain data, and the store that has its inputs."""

import platform
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from defensekit.components import Component
from defensekit.defense.estimation import Report
from defensekit.host.discovery import cached_plugins
from defensekit.host.parameters import build
from defensekit.host.registry import source_digest
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.pair import Pair
from defensekit.pipeline.store import Store
from defensekit.text import ROWS, Row, read_rows
from defensekit.training import Precision, TrainingSettings
from defensekit.utils.errors import DefenseKitError, KeyedError, UsageError
from defensekit.utils.seeds import derive_seed

C = TypeVar("C", bound=Component)
LEARNT = "learnt.json"  # the file of what an attack learnt


@dataclass(frozen=True)
class StageContext:
    """A stage to compute: its plain data, and the store that has its inputs."""

    stage: dict[str, Any]
    store: Store
    report: Report

    def component(self, kind: type[C], role: str) -> C:
        """The component in a role, built from its plain data.

        Raises:
            DefenseKitError: this machine does not have its plugin, or has another version than the run began with.
        """
        spec = self.stage["components"][role]
        what, plugin = f"the {kind.kind} {spec['name']!r}", f"{spec['plugin']} on {platform.node()}"
        files = [Path(file) for file in self.stage["plugin_files"]]
        if missing := [file for file in files if not file.is_file()]:
            raise DefenseKitError(f"there is no file {missing[0]} on {platform.node()}; put it where every node has it")
        host = cached_plugins(files)
        try:
            component = host.find(kind, spec["name"])
        except UsageError as error:
            raise DefenseKitError(f"{what} needs {plugin}; install it there ({error})") from error
        if source_digest(component) != spec["source"]:
            raise DefenseKitError(
                f"{what}: the source of {plugin} is not what the run began with "
                f"({host.plugin_of(kind.kind, spec['name'])} is there now); "
                "if it was edited, start the run again, if it is another version, install the same everywhere"
            )
        try:
            return build(component, spec["location"] | spec["parameters"])
        except KeyedError as error:
            raise error.below(kind.kind, spec["name"]) from error

    def folder(self, name: str) -> Path:
        """The folder of an input: an artifact's files, or a model outside the store."""
        value = self.stage["inputs"][name]
        return Path(value["path"]) if isinstance(value, dict) else self.store.open(value).files

    def facts(self, name: str) -> dict[str, Any]:
        """The facts about an input that is an artifact."""
        return self.store.open(self.stage["inputs"][name]).facts

    def about(self, name: str) -> dict[str, Any] | None:
        """Facts, costs and components of an input; None if it is outside the store."""
        if isinstance(self.stage["inputs"][name], dict):
            return None
        artifact = self.store.open(self.stage["inputs"][name])
        return {
            "facts": artifact.facts,
            "seconds": artifact.seconds,
            "peak_memory": artifact.peak_memory,
            "components": artifact.stage["components"],
        }

    def rows(self, name: str) -> list[Row]:
        """The rows of an input."""
        return read_rows(self.folder(name) / ROWS)

    def seed(self, *purpose: str) -> int:
        """A seed for a purpose within the stage."""
        return derive_seed(self.stage["seed"], *purpose)

    @property
    def max_length(self) -> int:
        """Tokens per row."""
        return int(self.stage["params"]["max_length"])

    @property
    def precision(self) -> Precision:
        """float32, or bfloat16 autocast."""
        return cast(Precision, self.stage["params"]["precision"])

    @property
    def training(self) -> TrainingSettings:
        """How a model is trained."""
        return TrainingSettings.model_validate(self.stage["params"]["training"])

    @cached_property
    def pair(self) -> Pair:
        """The inputs ``base`` and ``suspect``, aligned."""
        return Pair(Checkpoint(self.folder("base")), Checkpoint(self.folder("suspect")))
