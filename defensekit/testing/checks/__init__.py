"""The checks, a module for each kind. To import them is to register them, in the order in which they are reported."""

from defensekit.testing.checks import (
    attacks,
    conduct,
    estimators,
    every,
    metrics,
    purifiers,
    rules,
    runtime,
    sanitizers,
    scorers,
    selectors,
    sources,
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
