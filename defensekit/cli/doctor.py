"""`defensekit doctor`: what this machine has, what is missing, and the line that mends it."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from textwrap import TextWrapper
from typing import Literal

from packaging.requirements import Requirement
from rich.text import Text

from defensekit.cli.shared import console
from defensekit.host.discovery import host_version, load_plugins
from defensekit.utils.errors import UsageError
from defensekit.utils.files import cache_folder

ROOM = 2 * 2**30  # bytes that a run of a small model may take


@dataclass(frozen=True)
class Finding:
    """One thing looked at; ``mend`` is what to do about it."""

    what: str
    found: str
    state: Literal["ok", "note", "broken"] = "ok"
    mend: str = ""


def examine() -> list[Finding]:
    """Look at everything that a run may need."""
    return [
        Finding("defensekit", f"{host_version()}, {Path(__file__).parents[1]}"),
        Finding("python", f"{platform.python_version()}, {sys.executable}"),
        *_packages(),
        *_torch(),
        *_plugins(),
        *_places(),
        _hub(),
    ]


def show(findings: list[Finding]) -> bool:
    """Print what was found; True where nothing is broken."""
    out = console()
    for finding in findings:
        style = {"ok": "green", "note": "yellow", "broken": "red"}[finding.state]
        fill = TextWrapper(max(out.width - 20, 20), break_long_words=False, break_on_hyphens=False)
        lines = [*fill.wrap(finding.found), *fill.wrap(finding.mend)]
        for number, line in enumerate(lines):
            if number:
                out.print(" " * 20 + line)
            else:
                out.print(Text.assemble((f"{finding.state:<6}", style), f" {finding.what:<12} {line}"))
    broken = [finding.what for finding in findings if finding.state == "broken"]
    out.print(f"to be mended: {', '.join(broken)}" if broken else "everything that a run needs is here")
    return not broken


def _packages() -> Iterator[Finding]:
    """Every requirement of ours; those of extras may be missing."""
    missing: dict[str, list[str]] = {}
    found = []
    for text in requires("defensekit") or []:
        wanted = Requirement(text)
        extra = next((e for e in ("demo", "dev") if wanted.marker and not wanted.marker.evaluate({"extra": ""})
                      and wanted.marker.evaluate({"extra": e})), "")  # fmt: skip
        if wanted.marker and not extra and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            has = version(wanted.name)
        except PackageNotFoundError:
            has = ""
        if has and wanted.specifier.contains(has, prereleases=True):
            found += [f"{wanted.name} {has}"] if not extra else []
        elif extra:
            missing.setdefault(extra, []).append(wanted.name)
        else:
            line = f"pip install '{wanted.name}{wanted.specifier}'"
            yield Finding(wanted.name, has or "not installed", "broken", line)
    yield Finding("packages", ", ".join(found))
    if "demo" in missing:
        yield Finding("demo", "its model is not installed", "note", "pip install 'defensekit[demo]'")


def _torch() -> Iterator[Finding]:
    try:
        import torch

        from defensekit.gradients import kernel
        from defensekit.training import device_type, native_precision
    except Exception as error:
        yield Finding("torch", f"it can't be imported ({error})", "broken", "pip install --force-reinstall torch")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    yield Finding("torch", f"{torch.__version__}, {build}, {torch.get_num_threads()} threads")
    device = torch.cuda.get_device_name() if device_type() == "cuda" else platform.processor() or platform.machine()
    if torch.version.cuda and device_type() == "cpu":
        yield Finding("device", f"{device}: torch was built for a GPU and sees none", "note", "see nvidia-smi")
    else:
        yield Finding("device", f"{device_type()} ({device}), `precision: auto` is {native_precision()}")
    if kernel.load() is None:
        mend = "install a C compiler, or name one with CC=..."
        yield Finding("compiler", "none that builds the kernel; curvature is slower without", "note", mend)
    else:
        yield Finding("compiler", "the curvature kernel is built")


def _plugins() -> Iterator[Finding]:
    host = load_plugins()
    count = sum(len(names) for names in host.registrations.values())
    yield Finding("plugins", f"{count} components; `defensekit plugins list` names them")
    for problem in host.problems:
        if problem.left_out:
            yield Finding("plugin", str(problem), "broken", f"pip uninstall {problem.plugin.origin}, or mend it")
        else:
            yield Finding("plugin", str(problem), "note")
    for kind, names in host.registrations.items():
        for name in names:
            try:
                host.find(kind, name)
            except UsageError as error:
                yield Finding("plugin", str(error), "broken")


def _places() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for what, folder, variable in (
        ("cache", cache_folder(), "DEFENSEKIT_CACHE"),
        ("hub cache", Path(HF_HUB_CACHE), "HF_HUB_CACHE"),
        ("workspace", Path.cwd(), ""),
    ):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free
        if not os.access(there, os.W_OK):
            mend = f"export {variable}=FOLDER" if variable else "run in a folder of yours, or give --workspace"
            yield Finding(what, f"{folder} can't be written", "broken", mend)
        elif free < ROOM:
            yield Finding(what, f"{folder}, {free / 2**30:.1f} GiB free", "note", "defensekit store prune frees some")
        else:
            yield Finding(what, f"{folder}, {free / 2**30:.0f} GiB free")


def _hub() -> Finding:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "not asked: HF_HUB_OFFLINE is set", "note", "unset HF_HUB_OFFLINE")
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:
        why = f"{constants.ENDPOINT} can't be reached ({type(error).__name__})"
        return Finding("hub", why, "note", "local folders and files work; HF_ENDPOINT names another hub")
    return Finding("hub", f"{constants.ENDPOINT} answers")
