"""Fine-purifying (Zhang et al., Findings of ACL 2023, arXiv 2305.04547), the reference plugin set.

Drift against curvature, r = delta^2 / H: reset the dimensions with the largest r to their pretrained values, fine-tune
on a small clean set, and choose the largest fraction that keeps the clean accuracy. The paper's estimator, fine-tuning
settings and thresholds are not verified; what is a choice here is a parameter, and its default is ours.
"""

from defensekit.api import hookimpl


@hookimpl
def defensekit_estimators():  # type: ignore[no-untyped-def]
    """The estimators of this plugin, by name."""
    return {
        "fisher": "defensekit_finepurifying.estimators.fisher:Fisher",
        "fisher-mc": "defensekit_finepurifying.estimators.fisher_mc:FisherMC",
        "hutchinson": "defensekit_finepurifying.estimators.hutchinson:Hutchinson",
        "batch-gradient": "defensekit_finepurifying.estimators.batch_gradient:BatchGradient",
    }


@hookimpl
def defensekit_scorers():  # type: ignore[no-untyped-def]
    """The scorers of this plugin, by name."""
    return {"diffusion": "defensekit_finepurifying.scorers:Diffusion"}


@hookimpl
def defensekit_selectors():  # type: ignore[no-untyped-def]
    """The selectors of this plugin, by name."""
    return {
        "fraction": "defensekit_finepurifying.selectors:Fraction",
        "threshold": "defensekit_finepurifying.selectors:Threshold",
        "gamma-mixture": "defensekit_finepurifying.selectors:GammaMixture",
    }


@hookimpl
def defensekit_purifiers():  # type: ignore[no-untyped-def]
    """The purifiers of this plugin, by name."""
    return {
        "reset": "defensekit_finepurifying.purifiers:Reset",
        "fine-tune": "defensekit_finepurifying.purifiers:FineTune",
        "distil": "defensekit_finepurifying.distillation:Distil",
        "unlearn-triggers": "defensekit_finepurifying.trigger_unlearning:UnlearnTriggers",
    }


@hookimpl
def defensekit_rules():  # type: ignore[no-untyped-def]
    """The rules of this plugin, by name."""
    return {
        "accuracy-floor": "defensekit_finepurifying.rules:AccuracyFloor",
        "planted": "defensekit_finepurifying.rules:Planted",
    }
