"""The compiled kernel: built once by the machine's C compiler and cached; optional."""

import ctypes
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from defensekit.utils.errors import DefenseKitError
from defensekit.utils.files import cache_folder, data_digest

if TYPE_CHECKING:
    from torch import Tensor

SOURCE = Path(__file__).with_name("kernel.c")
# By the processor's capability as torch reports it; others are compiled for the base architecture.
FLAGS = {"AVX512": ["-mavx512f", "-mavx512vl", "-mfma"], "AVX2": ["-mavx2", "-mfma"]}

log = logging.getLogger("defensekit")


def build(compiler: str, capability: str) -> Path:
    """Compile the kernel unless it is cached.

    Raises:
        OSError: there is no compiler.
        subprocess.SubprocessError: the compiler failed.
    """
    flags = ["-O3", "-fPIC", "-shared", "-fopenmp", *FLAGS.get(capability, [])]
    source = SOURCE.read_text(encoding="utf-8")
    folder = cache_folder() / "kernels"
    library = folder / f"{data_digest([source, compiler, flags, platform.machine()])[:16]}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            compiled = Path(scratch) / library.name
            command = [*shlex.split(compiler), *flags, str(SOURCE), "-o", str(compiled)]
            subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=120)
            compiled.replace(library)
    return library


@cache
def load() -> ctypes.CDLL | None:
    """The kernel, or None where it can't be built, which is logged, or with ``DEFENSEKIT_KERNEL=off``.

    It shares torch's threads: its OpenMP runtime is the one that torch has loaded.
    """
    import torch

    if os.environ.get("DEFENSEKIT_KERNEL") == "off":
        return None
    try:
        library = ctypes.CDLL(str(build(os.environ.get("CC", "cc"), torch.backends.cpu.get_cpu_capability())))
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        library.squared_products.argtypes = [pointer] * 3 + [size] * 4 + [pointer] * 2
        library.squared_products.restype = ctypes.c_int
        library.squared_sums.argtypes = [pointer] * 2 + [size] * 3 + [pointer] * 2
        library.squared_sums.restype = ctypes.c_int
        library.used_rows.argtypes = [pointer, size, size, pointer]
        library.used_rows.restype = None
    except (OSError, subprocess.SubprocessError, AttributeError, RuntimeError, ValueError) as error:
        output = getattr(error, "stderr", None)
        why = output.strip().split("\n")[0] if isinstance(output, str) and output.strip() else str(error)
        log.info("squared gradients are computed without the compiled kernel: %s", why)
        return None
    return library


def squared_products(
    library: ctypes.CDLL, left: "Tensor", right: "Tensor", used: "Tensor", sums: "Tensor", norms: "Tensor"
) -> None:
    """Add every sample's squared product over its used rows; see kernel.c.

    Shapes (samples, tokens, A), (samples, tokens, B), (samples, tokens), (A, B), (samples,); all contiguous.
    """
    pointers = [tensor.data_ptr() for tensor in (left, right, used)]
    _done(library.squared_products(*pointers, *left.shape, right.shape[2], sums.data_ptr(), norms.data_ptr()))


def squared_sums(library: ctypes.CDLL, g: "Tensor", f: "Tensor | None", sums: "Tensor", norms: "Tensor") -> None:
    """Add every sample's squared sum over tokens of g, or of g times f; see kernel.c.

    Shapes (samples, tokens, features) twice, (features,), (samples,); all contiguous.
    """
    factor = None if f is None else f.data_ptr()
    _done(library.squared_sums(g.data_ptr(), factor, *g.shape, sums.data_ptr(), norms.data_ptr()))


def _done(failed: int) -> None:
    if failed:
        raise DefenseKitError("out of memory: a smaller budget or data.max_length takes less")


def used_rows(library: ctypes.CDLL, g: "Tensor") -> "Tensor":
    """Which rows of a contiguous (samples, tokens, features) are not exactly 0: (samples, tokens), bool."""
    import torch

    used = torch.empty(g.shape[:2], dtype=torch.bool)
    library.used_rows(g.data_ptr(), used.numel(), g.shape[2], used.data_ptr())
    return used
