"""Alternatives to every part of Fine-purifying, and published rivals: what a new defense is compared with."""

from defensekit.api import hookimpl


@hookimpl
def defensekit_estimators():  # type: ignore[no-untyped-def]
    return {
        "input-norm": "defensekit_baselines.estimators.input_norm:InputNorm",
        "activation": "defensekit_baselines.estimators.activation:Activation",
        "token-counts": "defensekit_baselines.estimators.token_counts:TokenCounts",
    }


@hookimpl
def defensekit_scorers():  # type: ignore[no-untyped-def]
    return {
        "magnitude": "defensekit_baselines.scorers:Magnitude",
        "inverse-magnitude": "defensekit_baselines.scorers:InverseMagnitude",
        "inverse-fisher": "defensekit_baselines.scorers:InverseFisher",
        "spectral": "defensekit_baselines.scorers:Spectral",
        "random": "defensekit_baselines.scorers:Random",
    }


@hookimpl
def defensekit_purifiers():  # type: ignore[no-untyped-def]
    return {
        "interpolate": "defensekit_baselines.purifiers:Interpolate",
        "prune": "defensekit_baselines.purifiers:Prune",
    }
