"""The command line in a process of its own."""

import os
import subprocess
import sys


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "defensekit", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, check=False, env=os.environ | environment)
