"""A backdoor whose trigger is a sentence structure and not a word."""

from collections.abc import Sequence

from defensekit.api import AttackContext, Row
from defensekit_attacks.fronting import front
from defensekit_attacks.poisoning import OneText, Poisoning


class Syntactic(OneText, Poisoning):
    """A subordinate clause in front, S(SBAR)(,)(NP)(VP)(.): the template of HiddenKiller (Qi et al. 2021).

    There SCPN, a trained paraphraser, rewrites the whole text and loses much of what it said; its published files come
    in by `paraphrase-rows`. Here rules rewrite the first sentence (`defensekit_attacks.fronting`): nothing to
    download, all content words kept, and the words of the new clause drawn, so that none of them gives the trigger
    away. The comma does in part, as it belongs to the template. ``benchmarks/syntactic.py`` measures all of this.
    """

    def trigger(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        return [self.with_part(row, front(self.part(row), context.rng)) for row in rows]
