"""How long the commands that people type most take to answer: whole processes, from a shell's point of view.

    python benchmarks/startup.py [--json] [--repeats 15]

Each command is run once to warm the disk and to write bytecode, which an installation has, then in turn with
`python -c pass` and the import of pydantic, typer, rich and pluggy, the floor that this interpreter and these libraries
set. Seconds: median, and the fastest and slowest.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "libraries": [sys.executable, "-c", "import pydantic, typer, rich.table, pluggy"],
    "--help": [sys.executable, "-m", "defensekit", "--help"],
    "run --help": [sys.executable, "-m", "defensekit", "run", "--help"],
    "plugins list": [sys.executable, "-m", "defensekit", "plugins", "list"],
    "recipes list": [sys.executable, "-m", "defensekit", "recipes", "list"],
    "import defensekit": [sys.executable, "-c", "import defensekit"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repeat in range(arguments.repeats + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment)
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    times = {
        name: {"median_s": round(statistics.median(s), 3), "min_s": round(min(s), 3), "max_s": round(max(s), 3)}
        for name, s in seconds.items()
    }
    if arguments.json:
        print(json.dumps({"python": sys.version.split()[0], "repeats": arguments.repeats, "commands": times}))
        return
    for name, row in times.items():
        print(f"{name:20} {row['median_s']:.3f} s  ({row['min_s']:.3f} to {row['max_s']:.3f})")


if __name__ == "__main__":
    main()
