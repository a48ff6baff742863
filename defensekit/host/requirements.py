"""Installed distributions compared with requirements."""

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import InvalidRequirement, Requirement

from defensekit.utils.errors import UsageError


def require_installed(text: str) -> None:
    """Check a requirement in pip's format, such as ``defensekit-foo>=1.2``.

    Raises:
        UsageError: it is none; or it is not installed, or in another version: the message has the command that fixes
            it.
    """
    wanted = requirement(text)
    if mismatch := _mismatch(wanted):
        raise UsageError(f"{text!r} is needed, and {mismatch} (pip install '{wanted.name}{wanted.specifier}')")


def requirement(text: str) -> Requirement:
    """Read a requirement in pip's format, of a name and versions.

    Raises:
        UsageError: it is none.
    """
    try:
        wanted = Requirement(text)
    except InvalidRequirement as error:
        reason = str(error).split("\n")[0]
        raise UsageError(
            f"{text!r} is not a requirement ({reason}), expected one as in 'defensekit-foo>=1.2'"
        ) from error
    if wanted.url:
        raise UsageError(f"{text!r} names an address, expected a name and versions, as in 'defensekit-foo>=1.2'")
    return wanted


def unmet(distribution: str) -> list[str]:
    """The requirements of an installed distribution, without extras, that are not met; none if it is not installed."""
    try:
        wanted = [Requirement(text) for text in requires(distribution) or []]
    except (PackageNotFoundError, ValueError):
        return []
    here = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [f"{one.name}{one.specifier}" for one in here if _mismatch(one)]


def _mismatch(requirement: Requirement) -> str | None:
    try:
        has = version(requirement.name)
    except PackageNotFoundError:
        return "it is not installed"
    return None if requirement.specifier.contains(has, prereleases=True) else f"{has} is installed"
