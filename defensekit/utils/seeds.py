"""A separate seed for every purpose."""

from dataclasses import dataclass
from functools import lru_cache

from defensekit.utils.files import data_digest


@lru_cache(4096)
def derive_seed(seed: int, *purpose: str) -> int:
    """A separate seed for a purpose, so that the attacker's and the defender's draws are independent."""
    return int(data_digest([seed, *purpose])[:8], 16) & 0x7FFFFFFF


@dataclass(frozen=True)
class Seeds:
    """The seeds of a run's stages, derived from the recipe's seed, for runs, dry runs and single steps alike."""

    seed: int

    @property
    def data(self) -> int:
        """For the split of the rows into roles."""
        return derive_seed(self.seed, "data")

    @property
    def poison(self) -> int:
        """For the poisoning of the training rows."""
        return derive_seed(self.seed, "attacker", "poison")

    @property
    def trigger(self) -> int:
        """For the triggers in the test rows."""
        return derive_seed(self.seed, "attacker", "trigger")

    @property
    def training(self) -> int:
        """For the attacker's training."""
        return derive_seed(self.seed, "attacker", "training")

    @property
    def retuning(self) -> int:
        """For the attacker's further training of a defended model."""
        return derive_seed(self.seed, "attacker", "retuning")

    @property
    def statistics(self) -> int:
        """For the estimator."""
        return derive_seed(self.seed, "defender", "statistics")

    @property
    def purify(self) -> int:
        """For scores and the steps of a purifier."""
        return derive_seed(self.seed, "defender", "purify")

    @property
    def search(self) -> int:
        """For the search for triggers."""
        return derive_seed(self.seed, "defender", "search")

    @property
    def plant(self) -> int:
        """For the triggers that the defender plants."""
        return derive_seed(self.seed, "defender", "plant")

    @property
    def sanitize(self) -> int:
        """For the sanitizer."""
        return derive_seed(self.seed, "defender", "sanitize")

    @property
    def filter(self) -> int:
        """For the filter of training rows."""
        return derive_seed(self.seed, "defender", "filter")

    @property
    def detect(self) -> int:
        """For detectors."""
        return derive_seed(self.seed, "defender", "detect")

    @property
    def metrics(self) -> int:
        """For the resampling of metrics' intervals."""
        return derive_seed(self.seed, "metrics")
