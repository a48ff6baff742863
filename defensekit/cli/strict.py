"""`--strict`: a warning ends the run."""

from defensekit.components import Observer
from defensekit.utils.errors import DefenseKitError


class Strict(Observer):
    """Stops at the first warning."""

    def warning(self, text: str) -> None:
        """End the run with an error."""
        raise DefenseKitError(f"{text} (a warning; --strict stops at it)")
