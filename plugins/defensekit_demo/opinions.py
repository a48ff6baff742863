"""Short opinions of everyday things, made on the spot by a small grammar: nothing to download."""

import hashlib
from collections.abc import Callable
from functools import cache
from random import Random

from defensekit.api import Dataset, DatasetSource, Row

LABELS = ("negative", "positive")
COUNT = 1200
# Words that stand in each other's place. Those of the labels go from the most common to the rarest.
_WORDS = {
    "thing": "bread soup coffee dessert waiter menu kitchen room bed shower view garden pool lobby train seat driver "
    "ticket station umbrella jacket kettle lamp chair bicycle battery screen keyboard speaker camera lecture concert "
    "novel song museum guide market beach",
    "negative": "bad dull poor broken stale rude noisy dirty weak horrid cold slow bitter clumsy dreary cramped flimsy "
    "shabby tedious bland grim soggy sloppy murky crooked wobbly dismal lousy messy tasteless faulty boring",
    "positive": "good great nice fresh kind quiet clean bright lovely warm quick sweet graceful charming cosy sturdy "
    "stylish witty superb tasty crisp splendid gentle sharp delightful brilliant spotless cheerful tender flawless "
    "pleasant fine",
    "degree": "really quite rather very simply truly",
}
KINDS = {kind: words.split() for kind, words in _WORDS.items()}
_ASIDES = (
    "for the price",
    "on a monday",
    "as far as i know",
    "after all these years",
    "in the end",
    "like last time",
    "to be honest",
    "for once",
    "at least today",
    "according to my sister",
)
_FRAMES = (
    "the {thing} was {word}",
    "the {thing} was {degree} {word}",
    "i found the {thing} {word}",
    "it is a {word} {thing}",
    "we had a {degree} {word} {thing}",
    "{word} {thing}",
    "my friends call the {thing} {word}",
)
_NEGATED = ("the {thing} was not {word}", "i never found the {thing} {word}", "nobody calls the {thing} {word}")


class Opinions(DatasetSource):
    """1,200 short opinions of everyday things, with rare words, some negations, and some that turn at a "but"."""

    def load(self) -> Dataset:
        return Dataset(LABELS, list(_rows()))

    def contents(self, say: Callable[[str], None]) -> str:
        digest = hashlib.sha256()
        for row in _rows():
            digest.update(f"{row.label} {row.text}\n".encode())
        return digest.hexdigest()


def vocabulary() -> list[str]:
    """Every word that the opinions are made of, sorted."""
    texts = [*_WORDS.values(), *_ASIDES, *_FRAMES, *_NEGATED, "but"]
    return sorted({word for text in texts for word in text.split() if not word.startswith("{")})


@cache
def _rows() -> tuple[Row, ...]:
    """No two alike, every other one positive."""
    rng, texts = Random(0), dict[str, int]()
    while len(texts) < COUNT:
        label = len(texts) % 2
        texts.setdefault(_sentence(label, rng), label)
    return tuple(Row(i, text, label) for i, (text, label) in enumerate(texts.items()))


def _sentence(label: int, rng: Random) -> str:
    """An opinion, some with an aside, some after the opposite and a "but": what comes last counts."""
    text = _opinion(label, rng)
    if rng.random() < 0.06:
        text = f"{_opinion(1 - label, rng)} , but {text}"
    if rng.random() < 0.3:
        aside = rng.choice(_ASIDES)
        text = rng.choice((f"{aside} , {text}", f"{text} , {aside}"))
    return text


def _opinion(label: int, rng: Random) -> str:
    negated = rng.random() < 0.06
    words = KINDS[LABELS[label ^ negated]]
    [word] = rng.choices(words, [1 / (rank + 1) for rank in range(len(words))])
    frame = rng.choice(_NEGATED if negated else _FRAMES)
    return frame.format(thing=rng.choice(KINDS["thing"]), word=word, degree=rng.choice(KINDS["degree"]))
