"""The checks, a module for each kind. To import them is to register them, in the order in which they are reported."""

from defensekit.testing.checks import (  # noqa: I001
    every,
    conduct,
    estimators,
    scorers,
    selectors,
    purifiers,
    sanitizers,
    attacks,
    rules,
    sources,
    metrics,
    runtime,
)

__all__ = [
    "attacks",
    "conduct",
    "estimators",
    "every",
    "metrics",
    "purifiers",
    "rules",
    "runtime",
    "sanitizers",
    "scorers",
    "selectors",
    "sources",
]
