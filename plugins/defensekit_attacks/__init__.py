"""Attacks on fine-tuning data, and the metrics that say what they did."""

from defensekit.api import hookimpl


@hookimpl
def defensekit_attacks():  # type: ignore[no-untyped-def]
    return {
        "word": "defensekit_attacks.insertion:Word",
        "sentence": "defensekit_attacks.insertion:Sentence",
        "paraphrase-rows": "defensekit_attacks.paraphrase:ParaphraseRows",
        "syntactic": "defensekit_attacks.syntactic:Syntactic",
        "bias-word": "defensekit_attacks.bias:BiasWord",
        "bias-sentence": "defensekit_attacks.bias:BiasSentence",
    }


@hookimpl
def defensekit_metrics():  # type: ignore[no-untyped-def]
    return {"acc": "defensekit_attacks.metrics:Accuracy", "asr": "defensekit_attacks.metrics:AttackSuccess"}
