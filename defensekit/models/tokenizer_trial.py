"""A stranger's tokenizer, tried in a process of its own: it may panic, loop, or eat memory there.

The tokenizers library is Rust, whose panics are no `Exception`; a template, a normaliser or a regular expression in
tokenizer.json can make a letter a million tokens, or take hours.
"""

import json
import os
import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from defensekit.utils.errors import UsageError, printable_name
from defensekit.utils.files import file_digest

SECONDS, GIB = 20, 4  # of processor time and memory, for loading and reading a few texts
# Added tokens; parts of a template or a sequence of normalisers; characters of a token; tokens of one letter.
ADDED, PARTS, LONGEST, TOKENS = 20_000, 2_000, 10_000, 1_000
_TEXTS = ("a", "The film, is witty. " * 50, "a" * 2_000, " " * 2_000, "é漢🙂\u202e" * 50)


def check_tokenizer(folder: Path) -> None:
    """Try the folder's tokenizer.json in another process, once for the same contents.

    Raises:
        UsageError: it fails, takes too long or too much memory, or makes far more of a text than there is.
    """
    path = folder / "tokenizer.json"
    if path.is_file() and (reason := _reason(file_digest(path), path)):
        raise UsageError(f"{folder}: its tokenizer is refused: {reason}")


@lru_cache(1024)
def _reason(digest: str, path: Path) -> str | None:
    """Why a tokenizer is refused; None where it is not."""
    command = [sys.executable, "-m", "defensekit.models.tokenizer_trial", str(path), str(SECONDS)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=10 * SECONDS, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return f"it takes more than {10 * SECONDS} seconds to read a few texts"
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        if name in ("SIGXCPU", "SIGKILL"):
            return f"it takes more than {SECONDS} seconds to read a few texts"
        return f"it crashes, or takes more than {GIB} GiB ({name})"
    try:
        return None if (reason := json.loads(done.stdout)) is None else printable_name(reason, 300)
    except ValueError:
        return f"the process that tried it ended with code {done.returncode}"


def _tried(path: str) -> str | None:
    """What is wrong with a tokenizer, in words."""
    from tokenizers import Tokenizer

    plain = json.loads(Path(path).read_bytes())
    if (added := len(plain.get("added_tokens") or ())) > ADDED:
        return f"it has {added:,} added tokens; at most {ADDED:,}"
    for name, part in plain.items():
        if name not in ("model", "added_tokens") and (most := _largest(part)) > PARTS:
            return f"its {name} has {most:,} parts; at most {PARTS:,}"
    tokenizer = Tokenizer.from_file(path)
    if (longest := max(map(len, tokenizer.get_vocab()), default=0)) > LONGEST:
        return f"a token has {longest:,} characters; at most {LONGEST:,}"
    for text in _TEXTS:
        for pair in (None, "b"):
            if (tokens := len(tokenizer.encode(text, pair))) > TOKENS + 8 * len(text):
                return f"it makes {tokens:,} tokens of {len(text):,} characters"
    return None


def _largest(data: object) -> int:
    """The number of values in the largest list or mapping of plain data."""
    values = list(data.values()) if isinstance(data, dict) else data if isinstance(data, list) else []
    return max([len(values), *map(_largest, values)])


def _bound(seconds: int) -> None:
    """Limit this process's time on the processor, and its memory."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (GIB << 30, GIB << 30))


if __name__ == "__main__":
    _bound(int(sys.argv[2]))
    try:
        answer = _tried(sys.argv[1])
    except MemoryError:
        answer = f"it takes more than {GIB} GiB"
    except BaseException as error:  # a panic is no Exception
        answer = f"{type(error).__name__}: {error}"
    sys.stdout.write(json.dumps(answer))
