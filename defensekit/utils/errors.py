"""The failures a user can act on, and helpers for their messages."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

WORD = 500  # characters of a name for which similar ones are looked up
FEW = 12  # names that a message lists; of more than these, half as many


class DefenseKitError(Exception):
    """Something went wrong that the user can act on; shown as a message, never as a traceback (exit code 1)."""


class UsageError(DefenseKitError):
    """The command or the recipe is wrong; nothing was run (exit code 2)."""


class PlacedError(UsageError):
    """A usage error whose message already names the location of the mistake."""


class KeyedError(UsageError):
    """A usage error in the value of a key.

    Attributes:
        key: the path to the value, as in ``("steps", 0, "strength")``.
        text: what is wrong with it.
    """

    def __init__(self, key: tuple[str | int, ...], text: str) -> None:
        super().__init__(f"{'.'.join(map(str, key))}: {text}" if key else text)
        self.key = key
        self.text = text

    def below(self, *key: str | int) -> "KeyedError":
        """The same error, with its key put below another one."""
        return KeyedError((*key, *self.key), self.text)


def is_failure(error: BaseException) -> bool:
    """Whether an exception is an error: any `Exception`, and a panic of a library in Rust, which is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception reports a lack of memory, be it Python's or torch's (which is not imported here).

    On a GPU torch raises a class of its own. Its allocator on the CPU raises a RuntimeError with one of these texts.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("DefaultCPUAllocator", "std::bad_alloc", "out of memory")
    )


def out_of_memory(error: BaseException) -> str:
    """The message for an exception that `lacks_memory`: what takes less memory, and its first line."""
    less = "smaller values of batch_size or data.max_length take less"
    if type(error).__name__ == "OutOfMemoryError":
        less += ", and with CUDA_VISIBLE_DEVICES= it runs on the CPU"
    return f"out of memory; {less} ({(str(error).splitlines() or [type(error).__name__])[0]})"


@contextmanager
def running(what: str) -> Iterator[None]:
    """Run untrusted code or a model with an untrusted config: its exceptions become errors that name it.

    Raises:
        DefenseKitError: it failed, but for want of memory.
    """
    try:
        yield
    except DefenseKitError:
        raise
    except Exception as error:
        if lacks_memory(error):
            raise
        raise DefenseKitError(f"{what} fails ({one_line(error)})") from error


def nearest(typed: str, known: Iterable[str]) -> str:
    """Suggest the known name that is closest to a misspelt one.

    Args:
        typed: the name that was given.
        known: the names that exist.

    Returns:
        ``" Did you mean 'NAME'?"``, with the blank in front, or the empty string where no name is close.
    """
    close = get_close_matches(typed[:WORD], [name for name in known if len(name) <= WORD])
    swapped = [name for name in close if sorted(name) == sorted(typed)]  # `tset` is as close to `text` as to `test`
    return f" Did you mean {(swapped or close)[0]!r}?" if close else ""


def choices(typed: str, known: Iterable[str], command: str = "") -> str:
    """Say what could have been typed: the closest name, and the known ones, of many of them the closest few.

    Args:
        typed: the name that was given.
        known: the names that exist.
        command: the command that shows all of them.

    Returns:
        ``" Did you mean 'a'? (known: a, b)"`` or the like, with the blank in front.
    """
    names = list(known)
    few = names if len(names) <= FEW else get_close_matches(typed[:WORD], names, n=FEW // 2, cutoff=0)
    more = f" … {len(names) - len(few)} more" if len(few) < len(names) else ""
    shown = f"; `{command}` shows them" if more and command else ""
    return f"{nearest(typed, names)} (known: {listing(few)}{more}{shown})"


def printable(text: str, keep: str = "\n\t") -> str:
    """Text that is safe to print on a terminal: escape sequences, bidirectional controls and the like are escaped.

    Every text passes this before it reaches a terminal; a stranger's word inside one of ours, `printable_name` as well.
    """
    if text.isprintable():
        return text
    return "".join(ch if ch.isprintable() or ch in keep else ch.encode("unicode_escape").decode() for ch in text)


def printable_name(text: object, limit: int = 200) -> str:
    """A name, label or title, of anybody's, as printable text on one line, its middle left out where it is longer."""
    word, half = str(text), limit // 2
    return printable(word if len(word) <= limit else f"{word[:half]}...{word[-half:]}", keep="")


def listing(names: Iterable[str], limit: int = 12) -> str:
    """Names as one line, cut after ``limit`` with the number left out."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(printable_name, names[:limit])) + more


def one_line(error: BaseException) -> str:
    """Another library's exception as part of a message: its class and its text, on one line and cut."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
