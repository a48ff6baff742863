"""A worker process: reads stages as plain data from a line, computes them, says how it goes."""

import json
import os
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from defensekit.api import DefenseKitError, UsageError, compute

EVERY = 0.2  # seconds between two reports of progress


def main(line: Connection) -> None:
    """Compute what comes until the other end hangs up."""
    import torch

    while True:
        try:
            asked = json.loads(line.recv_bytes())
        except EOFError:
            return
        torch.set_num_threads(int(sys.argv[2]))  # a plugin may have changed it
        said = 0.0

        def report(done: int, total: int) -> None:
            nonlocal said
            if (now := time.monotonic()) - said > EVERY:
                said = now
                _say(line, "progress", done, total)

        try:
            compute(asked["stage"], Path(asked["store"]), report)
        except UsageError as error:
            _say(line, "usage", str(error))
        except DefenseKitError as error:
            _say(line, "error", str(error))
        except Exception as error:
            _say(line, "error", f"{asked['stage']['title']}: {type(error).__name__}: {error}")
        else:
            _say(line, "done")


def _say(line: Connection, *values: object) -> None:
    line.send_bytes(json.dumps(values).encode())


def _end_with(parent: int) -> None:
    """Whoever started us was killed: what we compute is nobody's."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _bound(gib: float) -> None:
    """Bound the memory this process may take; what is beyond is an error instead of the whole machine's trouble."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30), resource.RLIM_INFINITY))


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if float(sys.argv[3]):
        _bound(float(sys.argv[3]))
    main(Connection(int(sys.argv[1])))
