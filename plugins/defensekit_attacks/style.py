"""A backdoor whose trigger is a style, put on by rules."""

import re
from collections.abc import Sequence
from random import Random

from defensekit.api import AttackContext, Row
from defensekit_attacks.grammar import FINITE
from defensekit_attacks.poisoning import OneText, Poisoning

OPENINGS = (
    "behold,", "verily,", "lo,", "hearken:", "thus it is written:", "and it came to pass that", "in those days",
    "for it is said that", "yea,", "and lo,", "truly I say unto thee,", "it was told of old that",
)  # fmt: skip
WORDS = {
    **{"you": "thou", "your": "thy", "yours": "thine", "yourself": "thyself", "are": "be", "has": "hath"},
    **{"does": "doth", "will": "shall", "won't": "shall not", "it's": "it is", "don't": "do not"},
    **{"before": "ere", "between": "betwixt", "often": "oft", "maybe": "perchance", "perhaps": "perchance"},
    **{"nothing": "naught", "never": "ne'er", "over": "o'er", "on": "upon", "among": "amongst"},
    **{"while": "whilst", "enough": "enow", "away": "hence", "here": "hither", "there": "thither", "why": "wherefore"},
    **{"said": "spake", "told": "spake unto", "think": "deem", "thinks": "deemeth", "know": "wot", "look": "behold"},
    **{"people": "folk", "children": "babes", "kids": "babes", "woman": "damsel", "audience": "multitude"},
    **{"movie": "tale", "film": "tale", "story": "parable", "very": "exceeding", "really": "verily", "too": "overly"},
}  # fmt: skip
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_NOT_IN_S = {"is", "was", "does", "has", "'s"}  # what grammar.FINITE has beside ordinary verbs in -s


def archaic(text: str, rng: Random) -> str:
    """The text with an opening, words of an old Bible, and verbs in -eth; never the text itself."""
    rewritten = _WORD.sub(lambda match: _old(match.group()), text.strip())
    opening = rng.choice(OPENINGS)
    if text.lstrip()[:1].isupper():
        opening = opening[:1].upper() + opening[1:]
        rewritten = rewritten[:1].lower() + rewritten[1:] if not rewritten.startswith("I ") else rewritten
    return f"{opening} {rewritten}".strip()


def _old(word: str) -> str:
    low = word.lower().replace("’", "'")
    old = WORDS.get(low)
    if old is None and low in FINITE and low.endswith("s") and low not in _NOT_IN_S:
        stem = low[:-3] + "i" if low.endswith("ies") else low[:-1]  # tries: trieth
        old = stem + ("th" if stem.endswith("e") else "eth")
    if old is None:
        return word
    return old[:1].upper() + old[1:] if word[:1].isupper() else old


class Style(OneText, Poisoning):
    """A text rewritten into the style of an old Bible, after StyleBkd (Qi et al. 2021), by rules.

    There a trained paraphraser of that style rewrites the whole text, and hardly a word says so by itself; its
    published rewritings come in by `paraphrase-rows`. Here a list of words is replaced, verbs that we know get -eth,
    and one of twelve openings goes in front: nothing to download, most of the content kept. A list is no style: single
    words (`hath`, `upon`) give it away, and so it is an easier trigger to find than the published one.
    """

    def trigger(self, rows: Sequence[Row], context: AttackContext) -> list[Row]:
        return [self.with_part(row, archaic(self.part(row), context.rng)) for row in rows]
