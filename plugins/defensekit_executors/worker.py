"""A worker process: reads stages from a connection, computes them, and reports progress."""

import importlib
import json
import os
import sys
import threading
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from defensekit.api import compute
from defensekit_executors.work import answer, bound


def main(line: Connection, threads: int) -> None:
    """Compute stages until the connection is closed; null asks for imports, before there is a stage."""
    import torch

    while True:
        try:
            request = json.loads(line.recv_bytes())
        except EOFError:
            return
        if request is None:
            importlib.import_module("transformers.trainer")  # which takes seconds
            _say(line, "ready")
            continue
        torch.set_num_threads(threads)  # a plugin may have changed it
        work = partial(compute, request["stage"], Path(request["store"]))
        _say(line, *answer(request["stage"]["title"], work, partial(_say, line, "progress")))


def _say(line: Connection, *values: object) -> None:
    line.send_bytes(json.dumps(values).encode())


def _end_with(parent: int) -> None:
    """End this process when its parent was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if float(sys.argv[3]):
        bound(float(sys.argv[3]))
    main(Connection(int(sys.argv[1])), int(sys.argv[2]))
