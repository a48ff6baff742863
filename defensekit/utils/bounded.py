"""A stranger's file or program tried in a process of its own: it may panic, loop or eat memory there.

The module that tries it is run and given plain data; `serve` is its last line. A process is asked again, since the
libraries that it imports take seconds, until it refuses something.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from defensekit.utils.errors import UsageError, one_line, printable_name

_Process = subprocess.Popen[bytes]
_IDLE: dict[str, _Process] = {}  # by the module that they run
_ASKING = Lock()


def refusal(module: str, path: Path, seconds: int, gib: int, doing: str) -> str | None:
    """Why a file is refused by the module that tries it; None where it is not. The arguments are those of `ask`."""
    try:
        ask(module, str(path.absolute()), seconds, gib, doing)
    except UsageError as error:
        return str(error)
    return None


def ask(module: str, given: object, seconds: int, gib: int, doing: str) -> Any:
    """What a module answers to plain data, in a process of its own.

    Args:
        module: the module's name.
        given: what it is given.
        seconds: the processor time that the process may take, and a tenth of what may pass meanwhile.
        gib: the memory that it may take, in GiB, beside what is mapped of libraries that it imports at its beginning.
        doing: what the module does, for the message.

    Raises:
        UsageError: it raises one, fails, or takes more; the message names no place.
    """
    much, long = (f"it takes more than {bound} to {doing}" for bound in (f"{gib} GiB", f"{seconds} seconds"))
    with _ASKING:
        process = _IDLE.pop(module, None)
        if process is None or process.poll() is not None:
            process = _start(module)
        try:
            written = _written(process, {"given": given, "seconds": seconds, "gib": gib}, 10 * seconds)
            if not written:
                name = signal.Signals(-process.wait()).name if process.wait() < 0 else f"code {process.wait()}"
                raise UsageError(long if name in ("SIGXCPU", "SIGKILL") else f"{much}, or crashes ({name})")
            try:
                answer, reason = json.loads(written)
            except ValueError as error:
                raise UsageError("the process that tried it printed something else than an answer") from error
            if reason is not None:
                raise UsageError(much if reason == _MEMORY else printable_name(reason, 300))
        except BaseException:
            _end(process)
            raise
        _IDLE[module] = process
        return answer


def _start(module: str) -> _Process:
    # -P: without it, a module of the user's folder, which may be the stranger's, is taken for a library.
    command = [sys.executable, "-P", "-m", module]
    # Arrow's own allocator reserves more than it uses.
    quiet = {"TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | quiet,
        process_group=0,  # Ctrl-C is for the main process, which ends this one
    )


def _written(process: _Process, request: object, seconds: int) -> bytes:
    """The line that a process answers; nothing where it ended, or took longer."""
    assert process.stdin is not None
    assert process.stdout is not None
    timer = Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        return process.stdout.readline()
    except BrokenPipeError:
        return b""
    finally:
        timer.cancel()


def _end(process: _Process) -> None:
    process.kill()
    process.communicate()


@atexit.register
def _end_all() -> None:
    for process in _IDLE.values():
        _end(process)


_MEMORY = "MemoryError"


def serve(tried: Callable[[Any], object]) -> None:
    """Answer what is given, a line at a time and with bounds: print what is answered, or why nothing is, as JSON."""
    mapped = _mapped()
    for line in sys.stdin:
        request = json.loads(line)
        _bound(request["seconds"], mapped + (request["gib"] << 30))
        answer = reason = None
        try:
            answer = tried(request["given"])
        except MemoryError:
            reason = _MEMORY
        except UsageError as error:
            reason = str(error)
        except BaseException as error:  # a panic is no Exception
            reason = one_line(error)
        sys.stdout.write(json.dumps([answer, reason]) + "\n")
        sys.stdout.flush()


def _mapped() -> int:
    """The bytes of address space that this process has."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 0  # no system whose limit of memory counts it


def _bound(seconds: int, size: int) -> None:
    """Limit what this process takes from now on of the processor, and its address space."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    used = int(time.process_time()) + 1
    for kind, bound in ((resource.RLIMIT_CPU, used + seconds), (resource.RLIMIT_AS, size)):
        _, most = resource.getrlimit(kind)
        resource.setrlimit(kind, (bound if most == resource.RLIM_INFINITY else min(bound, most), most))
