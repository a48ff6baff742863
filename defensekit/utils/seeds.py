"""A seed of its own for every purpose."""

from dataclasses import dataclass
from functools import lru_cache

from defensekit.utils.files import data_digest


@lru_cache(4096)
def derive_seed(seed: int, *purpose: str) -> int:
    """A seed of its own for every purpose, so that the attacker's and the defender's draws are independent."""
    return int(data_digest([seed, *purpose])[:8], 16) & 0x7FFFFFFF


@dataclass(frozen=True)
class Seeds:
    """The seeds of a run's stages, derived from its one seed: a run, a dry run, and each step by hand draw the same."""

    seed: int

    @property
    def data(self) -> int:
        """Who gets which row."""
        return derive_seed(self.seed, "data")

    @property
    def poison(self) -> int:
        """The attacker's training rows."""
        return derive_seed(self.seed, "attacker", "poison")

    @property
    def trigger(self) -> int:
        """The triggered test rows."""
        return derive_seed(self.seed, "attacker", "trigger")

    @property
    def training(self) -> int:
        """The attacker's training."""
        return derive_seed(self.seed, "attacker", "training")

    @property
    def statistics(self) -> int:
        """What an estimator draws."""
        return derive_seed(self.seed, "defender", "statistics")

    @property
    def purify(self) -> int:
        """Scores, and the steps of a purifier."""
        return derive_seed(self.seed, "defender", "purify")

    @property
    def sanitize(self) -> int:
        """What a sanitizer draws."""
        return derive_seed(self.seed, "defender", "sanitize")

    @property
    def metrics(self) -> int:
        """The draws of metrics' intervals."""
        return derive_seed(self.seed, "metrics")
