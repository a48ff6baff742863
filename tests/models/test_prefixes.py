"""Names are aligned as by trying every prefix, in linear time."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from defensekit.models.pair import align
from defensekit.models.prefixes import agreeing_prefixes, prefixes_of

_names = st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join), max_size=12)


def agreement(ours: set[str], theirs: set[str], mine: str, other: str) -> int:
    """How many names agree; -1 where two would become one."""
    left, right = ({name.removeprefix(p) for name in names} for names, p in ((ours, mine), (theirs, other)))
    return len(left & right) if (len(left), len(right)) == (len(ours), len(theirs)) else -1


@given(_names, _names)
@settings(deadline=None, max_examples=100)
def test_the_best_prefixes_are_those_of_trying_all(ours: set[str], theirs: set[str]) -> None:
    every = [(m, o) for m in prefixes_of(ours) for o in prefixes_of(theirs) if not (m and o) or m == o]
    found = agreeing_prefixes(ours, theirs)
    assert found in every
    assert agreement(ours, theirs, *found) == max(agreement(ours, theirs, *pair) for pair in every)


def test_a_hundred_thousand_names_take_seconds() -> None:
    names = [f"a{i}.b{i}.weight" for i in range(100_000)]
    before = time.process_time()
    ours, theirs = align(names, [f"model.{name}" for name in names])
    assert time.process_time() - before < 15
    assert ours.keys() == theirs.keys() == set(names)
