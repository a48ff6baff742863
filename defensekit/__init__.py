"""DefenseKit: find and remove backdoors and biases in fine-tuned language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defensekit.cli.progress import Progress
    from defensekit.pipeline.dry_run import preview
    from defensekit.pipeline.run import run
    from defensekit.recipe.loader import load_recipe
    from defensekit.result.page import write as write_report
    from defensekit.result.schema import Result
    from defensekit.studies.frame import results
    from defensekit.studies.loading import load_study
    from defensekit.studies.running import run_study
    from defensekit.workflows.interactive import estimate, evaluate, load_data, load_pair, plot, purify, score, select

# The user's door is lazy: `import defensekit` costs nothing until a name is used.
_DOOR = {
    "Progress": "cli.progress",
    "Result": "result.schema",
    "load_recipe": "recipe.loader",
    "load_study": "studies.loading",
    "preview": "pipeline.dry_run",
    "results": "studies.frame",
    "run": "pipeline.run",
    "run_study": "studies.running",
    "write_report": "result.page:write",
    **dict.fromkeys(
        ("estimate", "evaluate", "load_data", "load_pair", "plot", "purify", "score", "select"),
        "workflows.interactive",
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
