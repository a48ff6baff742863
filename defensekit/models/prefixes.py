"""With which prefixes removed the names of two models agree most, in time linear in the names."""

from collections.abc import Iterable, Iterator


def prefixes_of(names: Iterable[str]) -> dict[str, set[str]]:
    """The names that each prefix of one or two parts would change, shortest prefix first."""
    changed: dict[str, set[str]] = {}
    for name in names:
        parts = name.split(".", 2)
        for depth in (1, 2):
            if len(parts) > depth:
                changed.setdefault(".".join(parts[:depth]) + ".", set()).add(name)
    return {"": set(), **{prefix: changed[prefix] for prefix in sorted(changed, key=len)}}


def agreeing_prefixes(ours: set[str], theirs: set[str]) -> tuple[str, str]:
    """The prefixes to remove from two models' names: of one of them, or the same of both, or none.

    None with which two names of one model would become one. A prefix changes the few names that have it, and these
    alone are looked at.
    """
    own, other = prefixes_of(ours), prefixes_of(theirs)
    common = ours & theirs
    in_common = {prefix: names & common for prefix, names in own.items()}

    def stripped(prefix: str, names: set[str], whole: set[str]) -> set[str] | None:
        """The changed names without the prefix; None where one is there already."""
        short = {name.removeprefix(prefix) for name in names}
        return None if any(name in whole and name not in names for name in short) else short

    def pairs() -> Iterator[tuple[str, str]]:
        yield from (("", prefix) for prefix in other)
        for prefix in own:
            if prefix:
                yield prefix, ""
                if prefix in other:
                    yield prefix, prefix

    best, most = ("", ""), -1
    for mine, its in pairs():
        gone_ours, gone_theirs = own[mine], other[its]
        new_ours, new_theirs = stripped(mine, gone_ours, ours), stripped(its, gone_theirs, theirs)
        if new_ours is None or new_theirs is None:
            continue
        lost = len(in_common[mine]) if mine else len(gone_theirs & common)
        agreed = (
            len(common)
            - lost
            + sum(name in new_theirs or (name in theirs and name not in gone_theirs) for name in new_ours)
            + sum(name in ours and name not in gone_ours and name not in new_ours for name in new_theirs)
        )
        if agreed > most:
            best, most = (mine, its), agreed
    return best
