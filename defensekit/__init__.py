"""DefenseKit: find and remove backdoors and biases in fine-tuned language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defensekit.loading import load_recipe
    from defensekit.pipeline import run
    from defensekit.results import Result

# The user's door is lazy: `import defensekit` costs nothing until a name is used.
_DOOR = {"run": "defensekit.pipeline", "load_recipe": "defensekit.loading", "Result": "defensekit.results"}

__all__ = ["Result", "load_recipe", "run"]


def __getattr__(name: str) -> Any:
    if name in _DOOR:
        return getattr(import_module(_DOOR[name]), name)
    raise AttributeError(f"module 'defensekit' has no attribute {name!r}")
