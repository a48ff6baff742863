"""`defensekit doctor`: what this machine has, what is missing, and the command that fixes it; or what a model is."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Literal

from packaging.requirements import Requirement
from rich.text import Text

from defensekit.cli.shared import console
from defensekit.host.discovery import host_version, load_plugins
from defensekit.utils.errors import UsageError, printable_name
from defensekit.utils.files import cache_folder

if TYPE_CHECKING:
    from defensekit.models.inventory import Item

ROOM = 2 * 2**30  # bytes that a run of a small model may take


@dataclass(frozen=True)
class Finding:
    """One thing that was checked; ``fix`` is what to do about it."""

    what: str
    text: str
    state: Literal["ok", "note", "broken"] = "ok"
    fix: str = ""


def examine() -> list[Finding]:
    """Check everything that a run may need."""
    return [
        Finding("defensekit", f"{host_version()}, {Path(__file__).parents[1]}"),
        Finding("python", f"{platform.python_version()}, {sys.executable}"),
        *_packages(),
        *_torch(),
        *_plugins(),
        *_folders(),
        _hub(),
    ]


def show(findings: list[Finding]) -> bool:
    """Print the findings; returns whether nothing is broken."""
    out = console()
    for finding in findings:
        style = {"ok": "green", "note": "yellow", "broken": "red"}[finding.state]
        fill = TextWrapper(max(out.width - 20, 20), break_long_words=False, break_on_hyphens=False)
        lines = [*fill.wrap(finding.text), *fill.wrap(finding.fix)]
        for number, line in enumerate(lines):
            if number:
                out.print(" " * 20 + line)
            else:
                out.print(Text.assemble((f"{finding.state:<6}", style), f" {finding.what:<12} {line}"))
    broken = [finding.what for finding in findings if finding.state == "broken"]
    out.print(f"to be fixed: {', '.join(broken)}" if broken else "everything that a run needs is installed")
    return not broken


def show_model(items: "list[Item]") -> bool:
    """Print what a model's folder holds, a line each; returns whether nothing is refused."""
    out, width = console(), max((len(printable_name(item.name, 60)) for item in items), default=0)
    for item in items:
        style = {"read": "green", "ignored": "yellow", "refused": "red"}[item.state]
        name = printable_name(item.name, 60)
        out.print(Text.assemble((f"{item.state:<8}", style), f"{name:<{width}}  {printable_name(item.why, 1000)}"))
    refused = sum(item.state == "refused" for item in items)
    out.print(f"{refused} refused: `scan` and `purify` would not take it" if refused else "nothing is refused")
    return not refused


def _packages() -> Iterator[Finding]:
    """Every requirement of this package; those of extras may be missing."""
    missing: dict[str, list[str]] = {}
    installed = []
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
            installed += [f"{wanted.name} {has}"] if not extra else []
        elif extra:
            missing.setdefault(extra, []).append(wanted.name)
        else:
            line = f"pip install '{wanted.name}{wanted.specifier}'"
            yield Finding(wanted.name, has or "not installed", "broken", line)
    yield Finding("packages", ", ".join(installed))
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
        fix = "install a C compiler, or name one with CC=..."
        yield Finding("compiler", "none that builds the kernel; curvature is slower without", "note", fix)
    else:
        yield Finding("compiler", "the curvature kernel is built")


def _plugins() -> Iterator[Finding]:
    host = load_plugins()
    count = sum(len(names) for names in host.registrations.values())
    yield Finding("plugins", f"{count} components; `defensekit plugins list` names them")
    for problem in host.problems:
        if problem.left_out:
            yield Finding("plugin", str(problem), "broken", f"pip uninstall {problem.plugin.origin}, or fix it")
        else:
            yield Finding("plugin", str(problem), "note")
    for kind, names in host.registrations.items():
        for name in names:
            try:
                host.find(kind, name)
            except UsageError as error:
                yield Finding("plugin", str(error), "broken")


def _folders() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for what, folder, variable in (
        ("cache", cache_folder(), "DEFENSEKIT_CACHE"),
        ("hub cache", Path(HF_HUB_CACHE), "HF_HUB_CACHE"),
        ("workspace", Path.cwd(), ""),
    ):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        if not os.access(existing, os.W_OK):
            fix = f"export {variable}=FOLDER" if variable else "run in a folder of yours, or give --workspace"
            yield Finding(what, f"{folder} can't be written", "broken", fix)
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
