"""The shipped recipes."""

from pathlib import Path

from defensekit.utils.errors import UsageError, choices


def folder() -> Path:
    """Their folder: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """Their names, sorted."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def text(name: str) -> str:
    """A recipe's YAML.

    Raises:
        UsageError: there is no shipped recipe of that name.
    """
    if name not in names():
        raise UsageError(f"there is no recipe {name!r}.{choices(name, names(), 'defensekit recipes list')}")
    return (folder() / f"{name}.yaml").read_text(encoding="utf-8")


def summary(name: str) -> str:
    """The comment that a recipe begins with, as one line."""
    lines = []
    for line in text(name).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)
