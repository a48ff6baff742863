"""What a stranger's recipe may reach outside itself: what the user named, and nothing else."""

from collections.abc import Sequence
from pathlib import Path

from defensekit.utils.errors import UsageError, listing, printable_name


class Trust:
    """Files, folders and hub ids (``owner/name@revision``) that the user named; what else is asked for is noted.

    Args:
        named: as the user wrote them.
        folder: the recipe's own, in which there is nothing else.
    """

    def __init__(self, named: Sequence[str], folder: Path) -> None:
        self.named = set(named)
        self.paths = [folder.resolve(), *(Path(name).expanduser().resolve() for name in named)]
        self.refused: dict[str, None] = {}

    def ask(self, name: str) -> None:
        """Note a name that is not trusted."""
        if name not in self.named:
            self.refused[name] = None

    def ask_path(self, path: Path) -> None:
        """Note a path that neither is trusted nor lies in a trusted folder."""
        if not any(path.is_relative_to(trusted) for trusted in self.paths):
            self.refused[str(path)] = None

    def check(self) -> None:
        """Raise what was noted, if anything was.

        Raises:
            UsageError: says how to trust it.
        """
        if self.refused:
            options = " ".join(f"--trust {printable_name(name)!r}" for name in self.refused)
            raise UsageError(
                f"the result names {listing(self.refused)}, outside itself: nothing was opened or loaded. What of it "
                f"you trust (a plugin is code), name: {options}"
            )

    def plugin(self, path: Path) -> None:
        """Refuse a plugin file that was not itself named.

        Raises:
            UsageError: it was not.
        """
        if path not in self.paths:
            self.refused = {str(path): None}
            self.check()
