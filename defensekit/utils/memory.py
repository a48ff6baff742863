"""How much memory there is for more work."""

import os
import re
from contextlib import suppress
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # of a container, which may have less than the machine


def available() -> int:
    """Bytes that more work may take; half of the machine's where the system does not say."""
    try:
        free = _number(r"MemAvailable:\s+(\d+) kB", MEMINFO) * 1024
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    with suppress(OSError, ValueError):  # no container, or one without a limit
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used + _number(r"^inactive_file (\d+)", CGROUP / "memory.stat"))
    return free


def _number(pattern: str, file: Path) -> int:
    match = re.search(pattern, file.read_text(), re.MULTILINE)
    return int(match[1]) if match else 0
