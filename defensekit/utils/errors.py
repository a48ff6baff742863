"""The failures a user can act on, and the nearest match that goes with them."""

from collections.abc import Iterable
from difflib import get_close_matches


class DefenseKitError(Exception):
    """Something went wrong that the user can act on; shown as a message, never as a traceback (exit code 1)."""


class UsageError(DefenseKitError):
    """The command or the recipe is wrong; nothing was run (exit code 2)."""


class PlacedError(UsageError):
    """One that says already where the mistake stands."""


class KeyedError(UsageError):
    """A mistake in what was given under a key; ``key`` leads to it, as in ``("steps", 0, "strength")``."""

    def __init__(self, key: tuple[str | int, ...], text: str) -> None:
        super().__init__(f"{'.'.join(map(str, key))}: {text}" if key else text)
        self.key = key
        self.text = text

    def below(self, *key: str | int) -> "KeyedError":
        """The same of what this was a part of."""
        return KeyedError((*key, *self.key), self.text)


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception says that there is not enough memory: Python's, or torch's, which is not imported here.

    On a graphics card torch raises a class of its own; its allocator on the CPU has but a RuntimeError with this text.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("DefaultCPUAllocator", "std::bad_alloc", "out of memory")
    )


def out_of_memory(error: BaseException) -> str:
    """What to tell of one that `lacks_memory`: what takes less, and the first line of what it says."""
    less = "smaller values of batch_size or data.max_length take less"
    if type(error).__name__ == "OutOfMemoryError":
        less += ", and with CUDA_VISIBLE_DEVICES= it runs on the CPU"
    return f"out of memory; {less} ({(str(error).splitlines() or [type(error).__name__])[0]})"


def nearest(typed: str, known: Iterable[str]) -> str:
    """A sentence that names what is closest to what was typed, or the empty string."""
    close = get_close_matches(typed, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def printable(text: str) -> str:
    """Text for a terminal: what would move its cursor or change its colours is written out."""
    return "".join(ch if ch.isprintable() or ch in "\n\t" else ch.encode("unicode_escape").decode() for ch in text)


def listing(names: Iterable[str], limit: int = 12) -> str:
    """Names as one line, cut after ``limit`` with the number left out."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
