"""A stranger's file tried in a process of its own: a library in Rust or C may panic, loop or eat memory there.

The module that tries it is run with the file's path; `answer` is its last line.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from defensekit.utils.errors import printable_name

_MEMORY = "MemoryError"


def refusal(module: str, path: Path, seconds: int, gib: int, doing: str) -> str | None:
    """Why a file is refused by the module that tries it; None where it is not.

    Args:
        module: the module's name.
        path: the file.
        seconds: the processor time that the process may take, and a tenth of what may pass meanwhile.
        gib: the memory that it may take, in GiB.
        doing: what the module does, for the message.
    """
    much = f"it takes more than {gib} GiB to {doing}"
    command = [sys.executable, "-m", module, str(path), str(seconds), str(gib)]
    # Arrow's own allocator reserves more than it uses.
    quiet = {"TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=10 * seconds, env=os.environ | quiet, check=False)
    except subprocess.TimeoutExpired:
        return f"it takes more than {10 * seconds} seconds to {doing}"
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        if name in ("SIGXCPU", "SIGKILL"):
            return f"it takes more than {seconds} seconds to {doing}"
        return f"{much}, or crashes ({name})"
    try:
        reason = json.loads(done.stdout)
    except ValueError:
        return f"the process that tried it ended with code {done.returncode}"
    return {None: None, _MEMORY: much}.get(reason, printable_name(reason, 300))


def answer(tried: Callable[[str], str | None]) -> None:
    """Try the file that the command names, with bounds, and print what is wrong with it as JSON."""
    _bound(*map(int, sys.argv[2:]))
    try:
        reason = tried(sys.argv[1])
    except MemoryError:
        reason = _MEMORY
    except BaseException as error:  # a panic is no Exception
        reason = f"{type(error).__name__}: {error}"
    sys.stdout.write(json.dumps(reason))


def _bound(seconds: int, gib: int) -> None:
    """Limit this process's time on the processor, and its memory."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (gib << 30, gib << 30))
