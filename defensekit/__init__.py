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
    from defensekit.scanner.page import write_scan
    from defensekit.studies.frame import results
    from defensekit.studies.loading import load_study
    from defensekit.studies.running import run_study
    from defensekit.workflows.interactive import estimate, evaluate, load_data, load_pair, plot, purify, score, select
    from defensekit.workflows.purify_model import purify_model
    from defensekit.workflows.scan import scan

# The user's API is lazy: `import defensekit` costs nothing until a name is used.
_LAZY = {
    "Progress": "cli.progress",
    "Result": "result.schema",
    "load_recipe": "recipe.loader",
    "load_study": "studies.loading",
    "preview": "pipeline.dry_run",
    "purify_model": "workflows.purify_model",
    "results": "studies.frame",
    "run": "pipeline.run",
    "run_study": "studies.running",
    "scan": "workflows.scan",
    "write_scan": "scanner.page",
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
    "purify_model",
    "results",
    "run",
    "run_study",
    "scan",
    "score",
    "select",
    "write_report",
    "write_scan",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("defensekit")
    if name not in _LAZY:
        raise AttributeError(f"module 'defensekit' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(import_module(f"defensekit.{module}"), attribute or name)


def __dir__() -> list[str]:
    return __all__
