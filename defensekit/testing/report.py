"""What the checks found, as plain data."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["passed", "failed", "expected", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """What one check found; ``says`` is what was promised, ``reason`` why it did not pass."""

    check: str
    says: str
    status: Status
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """What every check found about a component with these parameters."""

    kind: str
    name: str
    parameters: dict[str, Any]
    outcomes: tuple[Outcome, ...]

    def of(self, status: Status) -> list[Outcome]:
        """The outcomes with a status."""
        return [outcome for outcome in self.outcomes if outcome.status == status]

    @property
    def passed(self) -> bool:
        """Whether nothing failed but what was expected to."""
        return not self.of("failed")

    @property
    def ran(self) -> int:
        """How many checks ran, of ``len(outcomes)``."""
        return len(self.outcomes) - len(self.of("skipped"))

    @property
    def summary(self) -> str:
        """How many checks ran out of how many, and how they ended."""
        statuses: tuple[Status, ...] = ("passed", "failed", "expected")
        counts = [f"{len(outcomes)} {status}" for status in statuses if (outcomes := self.of(status))]
        return f"{self.ran} of {len(self.outcomes)} checks ran: {', '.join(counts)}"

    def plain(self) -> dict[str, Any]:
        """Everything as plain data."""
        counts = {"ran": self.ran, "of": len(self.outcomes), "passed": self.passed}
        return {"kind": self.kind, "name": self.name, "parameters": self.parameters, **counts} | {
            "checks": [asdict(outcome) for outcome in self.outcomes]
        }

    def __str__(self) -> str:
        failures = [f"{outcome.check}: {outcome.reason}\n  ({outcome.says})" for outcome in self.of("failed")]
        return "\n".join([f"{self.kind} {self.name}: {self.summary}", *failures])
