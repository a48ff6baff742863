"""A seed of its own for every purpose."""

from functools import lru_cache
from typing import TYPE_CHECKING

from defensekit.utils.files import data_digest

if TYPE_CHECKING:
    pass


@lru_cache(4096)
def derive_seed(seed: int, *purpose: str) -> int:
    """A seed of its own for every purpose, so that the attacker's and the defender's draws are independent."""
    return int(data_digest([seed, *purpose])[:8], 16) & 0x7FFFFFFF
