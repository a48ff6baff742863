"""Enough English to tell a clause from a fragment, by lists of function words: no parser, nothing to download.

Words are in lower case; contractions may stand in one piece ("it's") or in two ("it 's"), as tokenised data has them.
"""

from collections.abc import Sequence


def words(text: str) -> frozenset[str]:
    """The words of a list."""
    return frozenset(text.split())


PRONOUNS = words("i you he she it we they this that these those there who one nobody everyone everybody someone anyone")
DETERMINERS = words("the a an its his her their my your our some all no every most many each both another any")
BE = words("is are was were 's 're 'm")
FINITE = BE | words(
    "am has have had does do did will would can could may might must should shall wo ca 'll 'd 've ai makes gives "
    "takes gets goes comes feels seems looks turns becomes works plays keeps leaves offers lacks fails proves manages "
    "tries wants knows finds shows tells brings lets runs ends begins starts says said thinks loves needs stays "
    "remains sounds appears succeeds suffers delivers deserves drags falls stands sits moves grows rises loses wins "
    "earns owes boasts captures carries combines contains creates depends demands depicts enjoys evokes examines "
    "exists explores follows happens helps holds hits hopes involves invites lies lives means misses opens packs "
    "pays presents promises provides pulls pushes puts reaches relies reminds requires reveals rests rings seeks "
    "serves sets shines shares slips speaks spends strikes strives suggests talks tends thrives treats unfolds "
    "uses wears went came took gave got thought felt became began knew saw announced reported plans claims"
)
RELATIVE = words("that which who whom whose what where why how whether when while because if though although than")
CONJUNCTIONS = words("because although though while when whenever if unless until since once before after as")
LOOSE = words("until since once before after as")  # prepositions as well
BEFORE_CONJUNCTION = words("even only just especially particularly except")
# What makes no adverbial clause of the words behind it: "see if", "the day when", "like when", "as if", "as good as".
NOT_ADVERBIAL = words(
    "as like than of for about to is 's was are were be what with see know knows wonder wonders ask asks tell care "
    "sure doubt remember moment moments time times day days scene scenes point points place places so such and or but "
    "not seem seems look looks sound sounds feel feels act acts just year years long soon far much many well same"
)
EXCEPT = words("nothing anything all everything everyone none help one nobody anybody any")
PREPOSITIONS = words("in on for with from at under about into through between during despite without beyond of to")
QUESTION = words("what who why how where when which whom whose is are was were do does did can could will would")

SUBJECTS = PRONOUNS | DETERMINERS  # what a clause begins with
_HAVE_S = PRONOUNS | RELATIVE | {"here"}
_BEHIND_S = DETERMINERS | {"not", "n't", "so", "too", "just"}
_BEFORE_NOUN = DETERMINERS | PREPOSITIONS | {"and"}
_INVERTED = QUESTION | {"has", "had"}
_OBJECTS = DETERMINERS | {"itself", "us", "you", "them"}
_ADVERBS = words("never again also still always just")


def is_finite(word: str) -> bool:
    """Whether a word is a verb with a subject, as far as the list goes."""
    head, mark, _ = word.partition("'")
    return word in FINITE or word.endswith("n't") or bool(mark and head in PRONOUNS)


def has_finite(low: Sequence[str]) -> bool:
    """Whether there is such a verb at all."""
    return any(is_finite(word) for word in low)


def is_clause(low: Sequence[str]) -> bool:
    """Whether words begin with a subject and have a verb of their own."""
    starts = low[0] in SUBJECTS or low[0].partition("'")[0] in PRONOUNS
    return starts and low[0] != "who" and has_main_verb(low)


def has_main_verb(low: Sequence[str]) -> bool:
    """Whether a finite verb stands outside every relative clause: before the first, or more verbs than clauses."""
    opened = verbs = 0
    for i, word in enumerate(low):
        if word in RELATIVE and i > 0:
            opened += 1
        elif verb_at(low, i):
            verbs += 1
            if not opened:
                return True
    return verbs > opened


def verb_at(low: Sequence[str], i: int) -> bool:
    """Whether the word at ``i`` is a finite verb, judged by its neighbours too."""
    word, before, after = low[i], low[i - 1] if i else "", low[i + 1] if i + 1 < len(low) else ""
    if word == "'s":  # "it 's a joke", not "the joke 's end"
        return before in _HAVE_S or after in _BEHIND_S
    if is_finite(word):
        return word != "n't"
    # An unlisted word in -s or -ed with an object behind it: "the director conjures a world".
    ends = (word.endswith("s") and not word.endswith(("ss", "us"))) or word.endswith("ed")
    return i > 0 and ends and len(word) > 4 and after in DETERMINERS and before not in _BEFORE_NOUN


def headed_by_verb(low: Sequence[str]) -> bool:
    """Whether words begin with a finite verb, adverbs aside: "never swings for a moment"."""
    rest = list(low)
    while len(rest) > 1 and (rest[0].endswith("ly") or rest[0] in _ADVERBS):
        rest = rest[1:]
    if not rest or rest[0] in ("do", "have", "'s", "let"):
        return False
    if rest[0] in FINITE:  # "did we laugh" is a question
        return len(rest) < 2 or rest[0] not in _INVERTED or rest[1] not in PRONOUNS
    after = rest[1] if len(rest) > 1 else ""
    plain = rest[0].endswith("s") and not rest[0].endswith(("ss", "us")) and len(rest[0]) > 4
    return plain and (after in _OBJECTS or len(rest) < len(low))
