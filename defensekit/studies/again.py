"""A stranger's recipe, run in a process of its own: what a plugin changes there, no comparison sees.

The parent sends a request, this process answers with events, each a line of JSON on a pipe of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from defensekit.components import Observer
from defensekit.components.runtime import Planned
from defensekit.utils.errors import DefenseKitError, UsageError

LINE = 1 << 22  # bytes of one event that are read
EVENTS = {"message", "warning", "stage_started", "progress", "stage_finished", "stage_failed"}


def run_apart(recipe: Path, workspace: Path, trusted: Sequence[str], observers: Sequence[Observer]) -> Path:
    """Run a recipe in another process, which opens and loads what is trusted; returns the path of its result.

    Raises:
        UsageError: the recipe names something else.
        DefenseKitError: the run failed, or the process died.
    """
    reading, writing = os.pipe()
    request = {"recipe": str(recipe), "workspace": str(workspace.absolute()), "trusted": list(trusted)}
    with open(reading, "rb") as events:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "defensekit.studies.again", str(writing), json.dumps(request)],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[writing],
            )
        finally:
            os.close(writing)
        try:
            return _followed(events, observers)
        finally:
            process.kill()
            process.wait()


def _followed(events: IO[bytes], observers: Sequence[Observer]) -> Path:
    while line := events.readline(LINE):
        try:
            what, *values = json.loads(line)
            if what == "done":
                return Path(values[0])
            if what in ("usage", "error"):
                raise (UsageError if what == "usage" else DefenseKitError)(str(values[0]))
            if what == "planned":
                values = [[Planned(**stage) for stage in values[0]]]
            elif what not in EVENTS:
                raise ValueError(what)
            for observer in observers:
                getattr(observer, what)(*values)
        except (ValueError, TypeError, IndexError) as error:
            raise DefenseKitError("the process of the run sent something that is no event") from error
    raise DefenseKitError("the process of the run ended before it had a result")


class _Events(Observer):
    """Sends every event on."""

    pipe: int

    def send(self, *values: Any) -> None:
        """Write one line."""
        os.write(self.pipe, json.dumps(values).encode() + b"\n")

    def message(self, text: str) -> None:
        """Send a line for the user."""
        self.send("message", text)

    def warning(self, text: str) -> None:
        """Send a warning."""
        self.send("warning", text)

    def planned(self, stages: Sequence[Planned]) -> None:
        """Send the stages ahead."""
        self.send("planned", [asdict(stage) for stage in stages])

    def stage_started(self, title: str) -> None:
        """Send the begin of a stage."""
        self.send("stage_started", title)

    def progress(self, title: str, done: int, total: int) -> None:
        """Send how far a stage is."""
        self.send("progress", title, done, total)

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        """Send the end of a stage."""
        self.send("stage_finished", title, seconds, reused)

    def stage_failed(self, title: str, error: str) -> None:
        """Send the failure of a stage."""
        self.send("stage_failed", title, error)


def _main(pipe: int, request: Mapping[str, Any]) -> None:
    from defensekit.pipeline.run import run
    from defensekit.recipe import yaml_document
    from defensekit.recipe.loader import KEPT, recipe_of
    from defensekit.recipe.trust import Trust

    events = _Events(pipe=pipe)
    try:
        path = Path(request["recipe"])
        document = yaml_document.load(path, (), KEPT)
        recipe = recipe_of(document, {}, Trust(request["trusted"], path.parent), events.message)
        folder = Path(run(recipe, request["workspace"], [events]).folder)
        events.send("done", str(folder / "result.json"))
    except UsageError as error:
        events.send("usage", str(error))
    except DefenseKitError as error:
        events.send("error", str(error))


if __name__ == "__main__":
    _main(int(sys.argv[1]), json.loads(sys.argv[2]))
