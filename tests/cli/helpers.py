"""The command line in a process of its own."""

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import torch

from defensekit.cli import command as run_command


@dataclass(frozen=True)
class Started:
    """A command that goes on."""

    arguments: tuple[str, ...]
    pid: int
    out: IO[str]
    err: IO[str]

    def said(self) -> str:
        """What stands on its standard error so far."""
        self.err.seek(0)
        return self.err.read()

    def ended(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.out.seek(0)
        return subprocess.CompletedProcess(self.arguments, code, self.out.read(), self.said())


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[Started]:
    """Start `defensekit` in a copy of this process, which has loaded what a new one takes ten seconds to load."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if not child:
            _become(["defensekit", *arguments], environment, out.fileno(), err.fileno())
        yield Started(arguments, child, out, err)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `defensekit` in a copy of this process."""
    with started(*arguments, **environment) as process:
        return process.ended()


def _become(arguments: list[str], environment: dict[str, str], out: int, err: int) -> None:
    """End this process as one of the command would end."""
    code: object = 1
    try:
        torch.set_num_threads(1)  # more of them do not live through a fork
        os.environ.update(environment)
        encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
        for fd, made in (1, out), (2, err):
            os.dup2(made, fd)
        if torch.cuda.is_initialized():  # no copy of a process can use it
            os.execv(sys.executable, [sys.executable, "-m", "defensekit", *arguments[1:]])
        sys.argv = arguments
        sys.stdout = open(1, "w", encoding=encoding, errors=errors or "strict", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
        run_command()
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
