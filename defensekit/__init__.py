"""DefenseKit: find and remove backdoors and biases in fine-tuned language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defensekit.cli.progress import Progress
    from defensekit.dryrun import preview
    from defensekit.loading import load_recipe
    from defensekit.pipeline import run
    from defensekit.report import write as write_report
    from defensekit.result import Result
    from defensekit.studies.frame import results
    from defensekit.studies.loading import load_study
    from defensekit.studies.running import run_study
    from defensekit.workbench import estimate, evaluate, load_data, load_pair, plot, purify, score, select

# The user's door is lazy: `import defensekit` costs nothing until a name is used.
_DOOR = {
    "Progress": "cli.progress",
    "Result": "result",
    "load_recipe": "loading",
    "load_study": "studies.loading",
    "preview": "dryrun",
    "results": "studies.frame",
    "run": "pipeline",
    "run_study": "studies.running",
    "write_report": "report:write",
    **dict.fromkeys(
        ("estimate", "evaluate", "load_data", "load_pair", "plot", "purify", "score", "select"), "workbench"
    ),
}

__all__ = [
    "Progress",
    "Result",
    "estimate",
    "evaluate",
    "load_data",
    "load_pair",
    "load_recipe",
    "load_study",
    "plot",
    "preview",
    "purify",
    "results",
    "run",
    "run_study",
    "score",
    "select",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module 'defensekit' has no attribute {name!r}")
    module, _, attribute = _DOOR[name].partition(":")
    return getattr(import_module(f"defensekit.{module}"), attribute or name)


def __dir__() -> list[str]:
    return __all__
