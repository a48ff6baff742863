"""The outcomes of checks, as plain data."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["passed", "failed", "expected", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check.

    Attributes:
        check: the name of the check.
        says: what it checks.
        status: ``passed``, ``failed``, ``expected`` (a failure that was expected) or ``skipped``.
        reason: why it did not pass.
    """

    check: str
    says: str
    status: Status
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """The outcomes of all checks of a component.

    Attributes:
        kind: the kind of component.
        name: the name of its class.
        parameters: its parameters.
        outcomes: the outcome of every check.
    """

    kind: str
    name: str
    parameters: dict[str, Any]
    outcomes: tuple[Outcome, ...]

    def of(self, status: Status) -> list[Outcome]:
        """The outcomes with a status.

        Args:
            status: the status.

        Returns:
            The outcomes, in order.
        """
        return [outcome for outcome in self.outcomes if outcome.status == status]

    @property
    def passed(self) -> bool:
        """Whether no check failed, other than expected failures."""
        return not self.of("failed")

    @property
    def ran(self) -> int:
        """How many checks ran, of ``len(outcomes)``."""
        return len(self.outcomes) - len(self.of("skipped"))

    @property
    def summary(self) -> str:
        """How many checks ran, and their outcomes, in one line."""
        statuses: tuple[Status, ...] = ("passed", "failed", "expected")
        counts = [f"{len(outcomes)} {status}" for status in statuses if (outcomes := self.of(status))]
        return f"{self.ran} of {len(self.outcomes)} checks ran: {', '.join(counts)}"

    def plain(self) -> dict[str, Any]:
        """The report as plain data.

        Returns:
            JSON values: the component, the numbers of checks, and every outcome under ``checks``.
        """
        counts = {"ran": self.ran, "of": len(self.outcomes), "passed": self.passed}
        return {"kind": self.kind, "name": self.name, "parameters": self.parameters, **counts} | {
            "checks": [asdict(outcome) for outcome in self.outcomes]
        }

    def __str__(self) -> str:
        failures = [f"{outcome.check}: {outcome.reason}\n  ({outcome.says})" for outcome in self.of("failed")]
        return "\n".join([f"{self.kind} {self.name}: {self.summary}", *failures])
