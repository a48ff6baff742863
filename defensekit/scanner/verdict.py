"""The verdict of a scan, by one number and its threshold, and the measurements in plain words.

Where a search can be made, what its strongest word turns beyond a control decides; with fewer rows what the strongest
suspicious token turns, and elsewhere the largest outlier among the embedding's rows. docs/scan.md says what thresholds
were measured on.
"""

from collections.abc import Sequence

from defensekit.defense.triggers.search import STANDS_OUT
from defensekit.models.checkpoint import CLASSIFIER
from defensekit.scanner.drift import is_another_base
from defensekit.scanner.result import EmbeddingScan, Law, ScanVerdict, Searched, TensorDrift, TokenizerScan, Triggers
from defensekit.scanner.tokenizer import strongest
from defensekit.utils.errors import listing

IN_ROWS, IN_ENGLISH = "the clean rows", "English at large (wordfreq)"
FLIPS = 0.6
OUTLIER = {IN_ROWS: 6.3, IN_ENGLISH: 7.6}
# The distribution follows the law as long as it is nowhere further from it than this.
KEPT = 0.05


def judge(
    tensors: list[TensorDrift],
    embedding: EmbeddingScan | None,
    triggers: Triggers | None,
    searched: Searched | None,
    tokenizer: TokenizerScan | None,
    findings: Sequence[str],
) -> ScanVerdict:
    """Decide: by what a changed tokenizer does, by what a search finds, by tried tokens, else by rows of the embedding.

    None of them gives no verdict, and a model with findings does not pass.
    """
    if (text := strongest(tokenizer)) is not None and text.flipped >= FLIPS:
        return ScanVerdict(
            suspicious=True,
            indicator="tokenizer",
            value=text.flipped,
            threshold=FLIPS,
            reason=f"its tokenizer differs from the base's, and {text.token!r}, which the two read differently, turns "
            f"{text.flipped:.0%} of the answers it could turn to {text.label!r}; from {FLIPS:.0%} on, a model is "
            "called suspicious",
        )
    verdict = _judged(tensors, embedding, triggers, searched)
    if verdict.suspicious is False and searched is not None and searched.disputed:
        reason = (
            f"the suspect answers most clean rows of other labels with {listing(searched.disputed)}, so that no word "
            "was judged towards these; its labels may have other names than the rows'. What else was measured can't "
            "acquit it"
        )
        return ScanVerdict(suspicious=None, indicator="search", value=None, threshold=None, reason=reason)
    if verdict.suspicious or not findings or verdict.indicator == "drift":
        return verdict
    return ScanVerdict(
        suspicious=None, indicator="findings", value=None, threshold=None, reason="what was found keeps it from passing"
    )


def _judged(
    tensors: list[TensorDrift],
    embedding: EmbeddingScan | None,
    triggers: Triggers | None,
    searched: Searched | None,
) -> ScanVerdict:
    if is_another_base(tensors):
        reason = (
            "the suspect drifted everywhere by more than fine-tuning does: it did not come from this base, or from "
            "another revision of it; with the right base, scan again"
        )
        return ScanVerdict(suspicious=None, indicator="drift", value=None, threshold=None, reason=reason)
    best = searched.strongest[0] if searched is not None and searched.strongest else None
    # A search acquits only where it judged every label.
    acquits = searched is not None and not searched.unjudged and not searched.texts
    if searched is not None and best is not None and (best.excess >= STANDS_OUT or acquits):
        beside = "the base's" if searched.texts else "those of a model trained from the base on the clean rows"
        return ScanVerdict(
            suspicious=best.excess >= STANDS_OUT,
            indicator="search",
            value=best.excess,
            threshold=STANDS_OUT,
            reason=f"{best.word!r} turns {best.flipped:.0%} of {best.rows} answers to {best.label!r}, and "
            f"{best.control:.0%} of {beside}; a difference of {100 * STANDS_OUT:.0f} points is called suspicious",
        )
    untried = triggers.untried if triggers is not None else []
    strongest = max(triggers.candidates, key=lambda one: one.flipped) if triggers is not None else None
    # Tokens acquit only where they could turn answers to every label.
    if strongest is not None and (strongest.flipped >= FLIPS or not untried):
        limit, value = FLIPS, strongest.flipped
        reason = (
            f"{strongest.token!r} turns {value:.0%} of the answers it could turn to {strongest.label!r}; from "
            f"{limit:.0%} on, a model is called suspicious"
        )
        return ScanVerdict(
            suspicious=value >= limit, indicator="trigger flips", value=value, threshold=limit, reason=reason
        )
    if embedding is not None and embedding.suspicious:
        value, limit = embedding.largest, OUTLIER[embedding.frequencies]
        token = embedding.suspicious[0].token
        reason = (
            f"the embedding row of {token!r} lies {value:.1f} spreads above rows of similar frequency; from "
            f"{limit:.1f} on, a model is called suspicious"
        )
        return ScanVerdict(
            suspicious=value >= limit, indicator="row outlier", value=value, threshold=limit, reason=reason
        )
    if untried:
        reason = (
            f"too few clean rows have another answer than {listing(untried)}, so that no token was tried towards it"
        )
    elif not any(tensor.moved for tensor in tensors):
        reason = "no weight that both models have differs"
    elif embedding is not None and not embedding.moved:
        reason = "no row of the embedding moved (adapters leave it as it is), so there is no token to judge or to try"
    else:
        reason = "there are neither clean rows to try tokens on nor rows of an embedding that moved"
    return ScanVerdict(suspicious=None, indicator="none", value=None, threshold=None, reason=reason)


def summarise(
    verdict: ScanVerdict,
    task: str,
    tensors: Sequence[TensorDrift],
    embedding: EmbeddingScan | None,
    law: Law | None,
    triggers: Triggers | None,
    searched: Searched | None,
    findings: Sequence[str],
) -> list[str]:
    """Summarise the measurements, a sentence each."""
    called = {True: "Suspicious", False: "Not suspicious by this measure", None: "No verdict"}[verdict.suspicious]
    said = [f"{called}: {verdict.reason}.", *(f"Found: {finding}." for finding in findings)]
    if verdict.suspicious is None and verdict.indicator == "drift":
        return said
    if verdict.threshold is not None:
        kind = "" if task == CLASSIFIER else f", and this is none ({task})"
        said.append(f"The threshold was set on fine-tuned classifiers of one small model{kind}.")
    moved, count = sum(tensor.moved for tensor in tensors), sum(tensor.dimensions for tensor in tensors)
    if searched is not None and searched.words:
        which = "words whose rows of the embedding stand out most" if searched.texts else "words of the vocabulary"
        said.append(f"A search tried the {searched.words:,} {which}.")
    elif searched is not None:
        said.append("No words were tried: there are too few clean rows to judge them by.")
    said.append(f"{moved / max(count, 1):.1%} of {count:,} compared dimensions differ from the base.")
    if embedding is not None:
        said.append(_rows(embedding))
    if triggers is not None:
        ours, others = (max(tried, key=lambda one: one.flipped) for tried in (triggers.candidates, triggers.controls))
        said.append(
            f"Inserted into {triggers.rows} clean rows, {ours.token!r} turns {ours.flipped:.0%} of {ours.of} answers "
            f"to {ours.label!r}; the strongest of {len(triggers.controls)} random tokens of similar frequency, "
            f"{others.token!r}, turns {others.flipped:.0%} of {others.of} to {others.label!r}."
        )
    if law is not None:
        said.append(_law(law))
    if not verdict.suspicious:
        said.append(
            "This is no proof of a clean model: a trigger that is no single word (a structure, a style, a combination) "
            "and a weak bias go unseen here."
        )
    return said


def _rows(embedding: EmbeddingScan) -> str:
    text = f"{embedding.moved:,} of {embedding.rows:,} rows of the embedding moved by more than weight decay"
    if not embedding.suspicious:
        return f"{text}; none can be judged."
    names = ", ".join(repr(row.token) for row in embedding.suspicious[:3])
    return f"{text}; furthest above others whose token is as frequent in {embedding.frequencies}: {names}."


def _law(law: Law) -> str:
    if law.single_distance <= KEPT:
        return "r = delta^2 / H follows one Gamma(1/2, 2k): no part of the dimensions stands out."
    if law.apart and law.distance <= KEPT:
        return (
            f"r = delta^2 / H follows two Gamma(1/2, 2k): {law.share:.1%} of the dimensions ({law.low:.1%} to "
            f"{law.high:.1%}) belong to the one with the larger mean."
        )
    return (
        f"r = delta^2 / H does not follow the Gamma laws of the theory (its distribution is {law.distance:.2f} off), "
        "as is usual for models trained by AdamW: the share of abnormal dimensions means nothing here."
    )
