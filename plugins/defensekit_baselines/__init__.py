"""Baselines for comparison: alternatives to every part of Fine-purifying, and other published defenses."""

from defensekit.api import hookimpl


@hookimpl
def defensekit_estimators():  # type: ignore[no-untyped-def]
    """The estimators of this plugin, by name."""
    return {
        "input-norm": "defensekit_baselines.estimators.input_norm:InputNorm",
        "activation": "defensekit_baselines.estimators.activation:Activation",
        "neuron-norm": "defensekit_baselines.estimators.neuron_norm:NeuronNorm",
        "token-counts": "defensekit_baselines.estimators.token_counts:TokenCounts",
        "anp": "defensekit_baselines.estimators.neuron_masks:AdversarialNeuronPruning",
        "head-variance": "defensekit_baselines.estimators.head_variance:HeadVariance",
    }


@hookimpl
def defensekit_scorers():  # type: ignore[no-untyped-def]
    """The scorers of this plugin, by name."""
    return {
        "magnitude": "defensekit_baselines.scorers:Magnitude",
        "inverse-magnitude": "defensekit_baselines.scorers:InverseMagnitude",
        "inverse-fisher": "defensekit_baselines.scorers:InverseFisher",
        "spectral": "defensekit_baselines.scorers:Spectral",
        "random": "defensekit_baselines.scorers:Random",
        "embedding-drift": "defensekit_baselines.embeddings:EmbeddingDrift",
        "small-weights": "defensekit_baselines.pruning:SmallWeights",
        "dormant": "defensekit_baselines.pruning:Dormant",
        "wanda": "defensekit_baselines.pruning:Wanda",
        "lipschitz": "defensekit_baselines.pruning:Lipschitz",
        "neuron-mask": "defensekit_baselines.pruning:NeuronMask",
        "head-variance": "defensekit_baselines.pruning:StaticHeads",
    }


@hookimpl
def defensekit_selectors():  # type: ignore[no-untyped-def]
    """The selectors of this plugin, by name."""
    return {
        "units": "defensekit_baselines.selectors:Units",
        "fraction-per-row": "defensekit_baselines.selectors:FractionPerRow",
    }


@hookimpl
def defensekit_sanitizers():  # type: ignore[no-untyped-def]
    """The sanitizers of this plugin, by name."""
    return {"onion": "defensekit_baselines.onion:Onion"}


@hookimpl
def defensekit_filters():  # type: ignore[no-untyped-def]
    """The filters of this plugin, by name."""
    return {
        "activation-clustering": "defensekit_baselines.filters.clusters:ActivationClustering",
        "spectral-signatures": "defensekit_baselines.filters.spectral:SpectralSignatures",
        "cube": "defensekit_baselines.filters.clusters:Cube",
        "bki": "defensekit_baselines.filters.keywords:Keywords",
        "loss-isolation": "defensekit_baselines.filters.isolation:LossIsolation",
        "random": "defensekit_baselines.filters.spectral:RandomRows",
    }


@hookimpl
def defensekit_detectors():  # type: ignore[no-untyped-def]
    """The detectors of this plugin, by name."""
    return {
        "strip": "defensekit_baselines.detectors.strip:Strip",
        "rap": "defensekit_baselines.detectors.rap:RobustnessAwarePerturbation",
        "onion": "defensekit_baselines.detectors.suspicion:Suspicion",
        "mahalanobis": "defensekit_baselines.detectors.mahalanobis:Mahalanobis",
        "disagreement": "defensekit_baselines.detectors.disagreement:Disagreement",
    }


@hookimpl
def defensekit_purifiers():  # type: ignore[no-untyped-def]
    """The purifiers of this plugin, by name."""
    return {
        "interpolate": "defensekit_baselines.purifiers:Interpolate",
        "prune": "defensekit_baselines.purifiers:Prune",
        "rescale": "defensekit_baselines.merging:Rescale",
        "merge": "defensekit_baselines.merging:Merge",
        "attention-distillation": "defensekit_baselines.distilling:AttentionDistillation",
        "attention-penalty": "defensekit_baselines.regularised:AttentionPenalty",
        "layer-consistency": "defensekit_baselines.regularised:LayerConsistency",
        "unlearn": "defensekit_baselines.unlearning:Unlearn",
    }
