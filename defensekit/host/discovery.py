"""Discovery and loading of plugins, installed or local."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from types import ModuleType
from typing import Any

from defensekit.host.registry import Host, Plugin
from defensekit.utils.errors import DefenseKitError, UsageError, listing, nearest
from defensekit.utils.files import data_digest, file_digest

GROUP = "defensekit"


@lru_cache(maxsize=16)
def _name_and_version(dist: Distribution) -> tuple[str, str]:
    """Of a distribution, read once for all of its plugins: metadata contain a whole README."""
    metadata = dist.metadata
    return metadata["Name"], metadata["Version"]


def _installed(entry: EntryPoint) -> Plugin:
    origin, version = _name_and_version(entry.dist) if entry.dist else (entry.value, "")
    return Plugin(entry.name, version, origin)


def local_plugin(file: Path) -> Plugin:
    """The plugin of a local file."""
    path = Path(os.path.realpath(file))
    return Plugin(path.name, "", str(path.parent))


class _Source(SourceFileLoader):
    """Keeps no bytecode: a plugin may lie in a row of a leaderboard, which has its own files and no others."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Write nothing."""


def _import_file(path: Path) -> ModuleType:
    name = f"defensekit_local_{path.stem}_{data_digest(str(path))[:8]}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Source(name, str(path)))
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@cache
def _installed_entries(_: tuple[tuple[str, int], ...]) -> list[EntryPoint]:
    """All installed plugins, looked for once for the same places where Python looks: every stage asks for them."""
    return sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))


def _changed(place: str) -> int:
    """When something was last put into a folder, or taken out; 0 if it is none."""
    try:
        return os.stat(place or os.curdir).st_mtime_ns
    except OSError:
        return 0


def _chosen() -> list[EntryPoint]:
    """The installed plugins, sorted by name; only those in ``DEFENSEKIT_PLUGINS`` where that is set."""
    entries = _installed_entries(tuple((place, _changed(place)) for place in sys.path))
    if (chosen := os.environ.get("DEFENSEKIT_PLUGINS")) is None:
        return entries
    wanted, known = {name.strip() for name in chosen.split(",")} - {""}, {entry.name for entry in entries}
    for name in sorted(wanted - known):
        raise UsageError(f"DEFENSEKIT_PLUGINS: no plugin {name!r} is installed.{nearest(name, known)} "
                         f"(installed: {listing(sorted(known)) or 'none'})")  # fmt: skip
    return [entry for entry in entries if entry.name in wanted]


def load_plugins(files: Iterable[Path] = ()) -> Host:
    """A host with the core's own components, the chosen installed plugins, and local files.

    Raises:
        UsageError: a file does not exist, or ``DEFENSEKIT_PLUGINS`` names a plugin that is not installed.
    """
    host = Host()
    host.load(Plugin("core", host_version(), "defensekit"), lambda: importlib.import_module("defensekit.host.builtin"))
    for entry in _chosen():
        host.load(_installed(entry), entry.load)
    for file in files:
        path = Path(os.path.realpath(file))
        if not path.is_file():
            raise UsageError(f"plugins: there is no file {path}")
        host.load(local_plugin(path), lambda path=path: _import_file(path))  # type: ignore[misc]
    return host


def cached_plugins(files: Iterable[Path] = ()) -> Host:
    """As `load_plugins`, loaded once for the same installed plugins and the same contents of files.

    Raises:
        UsageError: as `load_plugins`.
    """
    digests = tuple((path, file_digest(path) if path.is_file() else None) for path in files)
    return _cached(tuple(_chosen()), digests)


@cache
def _cached(entries: tuple[EntryPoint, ...], files: tuple[tuple[Path, str | None], ...]) -> Host:
    return load_plugins(path for path, _ in files)


def host_version() -> str:
    """The installed version of this distribution."""
    try:
        return version("defensekit")
    except PackageNotFoundError as error:
        raise DefenseKitError("defensekit is not installed; run: pip install -e .") from error
