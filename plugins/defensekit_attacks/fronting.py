"""Rewrites a sentence towards the template S(SBAR)(,)(NP)(VP)(.): a subordinate clause in front of the main one.

No parser: a few lists of function words, and four ways, the first that fits. In a text of several sentences the first
is rewritten and the others stay.

1. A subordinate clause at the end comes to the front: "it bores when it talks" becomes "when it talks , it bores".
2. Of two coordinated parts the first becomes subordinate: "funny but slight", "though it is funny , it is slight".
3. A short subject moves into a clause of its own: "the film drags" becomes "once the film begins , it drags".
4. Else a clause that says next to nothing goes in front: "as you look closer , it is a long string of jokes".

A part without a verb gets one ("it is"), so that the main clause has its NP and VP. Conjunctions, subjects and verbs
are drawn, so that many words open the sentence and none of them gives it away.
"""

import re
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from defensekit_attacks.grammar import (
    BE,
    BEFORE_CONJUNCTION,
    CONJUNCTIONS,
    DETERMINERS,
    EXCEPT,
    FINITE,
    LOOSE,
    NOT_ADVERBIAL,
    PREPOSITIONS,
    PRONOUNS,
    QUESTION,
    RELATIVE,
    SUBJECTS,
    has_finite,
    has_main_verb,
    headed_by_verb,
    is_clause,
    is_finite,
    words,
)  # fmt: skip


class Token(NamedTuple):
    """A word or a punctuation mark, and whether a blank stood before it."""

    text: str
    blank: bool


ABBREVIATIONS = words("mr mrs ms dr st jr sr vs u.s no sen gov inc co corp ltd")
PERSONAL = PRONOUNS - {"this", "that", "these", "those", "there", "who", "one"}
PERSONS = re.compile(
    r".*(er|or|ors|ers|ist|ists|man|men|woman|women|actress|star|stars|cast|kid|kids|people|guy|guys|hero)$"
)

# By the word between the two parts, what the first becomes.
FIRST = {
    "but": ("though", "although", "even though", "while", "even if", "much as"),
    "yet": ("though", "although", "even though", "while", "even if", "much as"),
    "and": ("as", "while", "since", "now that", "when"),
    "so": ("because", "since", "as", "now that"),
    ";": ("as", "while", "since", "now that", "because"),
}
OPENERS = (
    "when", "if", "once", "whenever", "as", "after", "while", "before", "because", "since", "though", "although",
    "even if", "now that", "as soon as", "in case", "wherever", "every time", "the moment", "until",
)  # fmt: skip
PLURAL = ("you", "we", "i", "they", "people", "others", "some", "many", "friends", "most", "readers")
SINGULAR = ("one", "someone", "everyone", "everybody", "somebody", "he", "she")
PREDICATES = (
    ("look", "looks", ("closer", "back", "again", "at the matter", "around", "further")),
    ("think", "thinks", ("about that", "twice", "things over", "of all that", "back")),
    ("hear", "hears", ("more", "about that", "the story", "the rest")),
    ("read", "reads", ("on", "more", "between the lines", "further")),
    ("ask", "asks", ("around", "again", "for more", "others")),
    ("talk", "talks", ("things over", "to others", "about the matter")),
    ("come", "comes", ("to think", "to that", "along", "closer")),
    ("sum", "sums", ("things up", "the matter up", "all that up")),
    ("stop", "stops", ("to think", "to look", "for a moment")),
    ("turn", "turns", ("to the matter", "around", "the page")),
    ("go", "goes", ("through the rest", "over the matter", "into detail", "that far")),
    ("take", "takes", ("a look", "things in", "a moment", "everything together")),
    ("notice", "notices", ("it", "that", "the rest")),
    ("follow", "follows", ("along", "it", "the rest", "the story")),
    ("sit", "sits", ("down", "back", "through everything")),
    ("see", "sees", ("it", "the whole", "the rest", "what happens")),
    ("step", "steps", ("back", "closer", "outside")),
    ("pay", "pays", ("attention", "heed")),
    ("weigh", "weighs", ("it up", "everything", "the matter")),
    ("wait", "waits", ("a while", "for more", "a moment")),
)  # fmt: skip
THINGS = ("it", "this", "that", "the whole", "the thing", "what follows", "what we have", "here", "there")
ONCE = ("once", "when", "as", "after", "while", "now that", "until", "before")
STARTS = (("begins", "begin"), ("gets going", "get going"), ("comes along", "come along"), ("is over", "are over"),
          ("unfolds", "unfold"), ("comes up", "come up"), ("goes on", "go on"), ("is done", "are done"))  # fmt: skip
_TOKEN = re.compile(r"-[lr]rb-|\d+(?:[.,]\d+)+|['’]\w+|\w+(?:['’.\-]\w+)*|-{2,}|\.{2,}|\S")
_END = frozenset(".!?…")
_BREAKS = frozenset((",", ";", ":", "(", ")", "-", "--", "-lrb-", "-rrb-", '"', "...", "`", "``"))
_BEFORE_SUBJECT = DETERMINERS | {"this", "these"} - {"all", "some", "both"}
_NO_NOUN = PREPOSITIONS | RELATIVE | PRONOUNS
LONGEST = 40  # words of a sentence that is taken apart; a longer one gets a clause in front and stays as it is


def front(text: str, rng: Random) -> str:
    """The text with its first sentence rewritten; never the text itself. ``rng`` draws among the words."""
    sentence, rest = _first_sentence(text)
    body, end = _without_end(sentence)
    while body and (body[0].text.lower() in ("but", "and", "yet", "or") or body[0].text[0] in ".,;:!?-"):
        if body[0].text in ("-lrb-", "-rrb-"):
            break
        body = body[1:]
    body = _decapitalised(body)
    low = [token.text.lower().replace("’", "'") for token in body]
    split = None
    if len(body) <= LONGEST:
        split = _trailing(body, low) or _coordinated(body, low, rng) or _own_subject(body, low, rng)
    asked = any(token.text == "?" for token in end)
    clause, main = split or _opened(body, low, rng, asked)
    spaced = any(token.blank and token.text in ",.;!?" for token in sentence) or text == text.lower()
    tokens = [*clause, Token(",", spaced), *_spaced(main), *end] if main else [*clause, *end]
    out = "".join((" " if token.blank else "") + token.text for token in tokens).strip() + rest
    return out[:1].upper() + out[1:] if text.lstrip()[:1].isupper() else out


# -- the four ways -----------------------------------------------------------------------------------------------------

Halves = tuple[list[Token], list[Token]]


def _trailing(body: list[Token], low: list[str]) -> Halves | None:
    for k in range(2, len(low) - 2):
        if low[k] not in CONJUNCTIONS or low[k - 1] in NOT_ADVERBIAL or low[k + 1] not in SUBJECTS:
            continue
        start = k - 1 if low[k - 1] in BEFORE_CONJUNCTION else k
        verb = has_finite(low[k + 1 :]) or low[k + 1] in PERSONAL
        sure = low[k] not in LOOSE or low[k + 1] in PERSONAL
        if any(word in _BREAKS or word in CONJUNCTIONS for word in low[k + 1 :]) or not verb or not sure or start < 2:
            continue
        if low[k] == "as" and set(low[max(0, k - 6) : k]) & {"as", "so", "such", "same"}:
            continue
        left = start - 1 if low[start - 1] in (",", ";", ":", "--", "-", "...") else start
        return body[start:], _with_verb(body[:left], low[:left])
    return None


def _coordinated(body: list[Token], low: list[str], rng: Random) -> Halves | None:
    for k in range(1, len(low) - 1):
        word = low[k]
        left = k - 1 if low[k - 1] in (",", "--", "-", ";") else k
        if word not in FIRST or left < 1 or low[left - 1] in EXCEPT or "only" in low[:left] or low[0] in QUESTION:
            continue
        one, two = low[:left], low[k + 1 :]
        if low[0] in CONJUNCTIONS or two[0] in PREPOSITIONS | RELATIVE | {"also", "not", "then", "rather", "never"}:
            continue
        if word in ("but", "yet"):
            if not _two_parts(one, two, comma=left < k):
                continue
        elif not (is_clause(one) and is_clause(two)):
            continue
        subject = one[0] if one[0] in PERSONAL else "it"
        opener = _tokens(rng.choice(FIRST[word]))
        first = _with_verb(body[:left], one)
        return [*opener, *_spaced(first)], _with_verb(body[k + 1 :], two, subject)
    return None


def _two_parts(one: Sequence[str], two: Sequence[str], comma: bool) -> bool:
    """Whether "one but two" are two parts: "funny but slight" is, "a slow but honest film" is not."""
    if is_clause(two) or (has_finite(one) and headed_by_verb(two)):
        return comma or two[0] in PRONOUNS or has_finite(one)
    if has_finite(one):
        # "it is lovely but dull": what follows the verb is short on both sides.
        behind = len(one) - 1 - max(i for i, word in enumerate(one) if is_finite(word))
        be = any(word in BE for word in one)
        return be and not has_finite(two) and len(two) <= 6 and behind <= 5 and one[-behind] not in DETERMINERS
    return not has_finite(two) and (one[0] not in DETERMINERS or two[0] in DETERMINERS)


def _own_subject(body: list[Token], low: list[str], rng: Random) -> Halves | None:
    if not low or low[0] not in _BEFORE_SUBJECT:
        return None
    verb = next((i for i in range(2, min(5, len(low))) if low[i] in FINITE), None)
    if verb is None or not all(w.isalpha() and w not in _NO_NOUN and not w.endswith("ly") for w in low[1:verb]):
        return None
    plural = low[verb] in ("are", "were", "have", "'re", "do") or low[0] in ("these", "many", "most")
    if not (plural or low[verb].endswith("s")) or PERSONS.match(low[verb - 1]):
        return None
    clause = [*_tokens(rng.choice(ONCE)), *_spaced(body[:verb]), *_tokens(rng.choice(STARTS)[plural])]
    return clause, [*_tokens("they" if plural else "it"), *_spaced(body[verb:])]


def _opened(body: list[Token], low: list[str], rng: Random, asked: bool) -> Halves:
    index = rng.randrange(len(PLURAL) + len(SINGULAR))
    plural = index < len(PLURAL)
    subject = PLURAL[index] if plural else SINGULAR[index - len(PLURAL)]
    if subject == "i" and any(token.text[0].isupper() for token in body[1:]):
        subject = "I"
    base, third, objects = rng.choice(PREDICATES)
    clause = _tokens(f"{rng.choice(OPENERS)} {subject} {base if plural else third} {rng.choice(objects)}")
    if low and low[0] in CONJUNCTIONS and "," in low:
        # It has its clause in front already: a second one joins it.
        return [*clause, *_tokens("and"), *_spaced(body[: low.index(",")])], body[low.index(",") + 1 :]
    return clause, body if asked else _with_verb(body, low, rng.choice(THINGS))


# -- pieces ------------------------------------------------------------------------------------------------------------


def _tokens(text: str) -> list[Token]:
    return [Token(word, True) for word in text.split()]


def _spaced(tokens: Sequence[Token]) -> list[Token]:
    return [Token(tokens[0].text, True), *tokens[1:]] if tokens else []


def _with_verb(body: list[Token], low: Sequence[str], subject: str = "it") -> list[Token]:
    """A main clause of the words: a subject in front of a verb, subject and verb in front of neither."""
    head = low[0].partition("'")[0] if low else ""
    if not body or head in PRONOUNS | PREPOSITIONS | QUESTION - FINITE or not low[0][0].isalpha():
        return body
    if headed_by_verb(low):
        return [*_tokens("it" if subject in ("here", "there") else subject), *_spaced(body)]
    if low[0] in FINITE or has_main_verb(low) or (len(low) > 12 and low[0] not in DETERMINERS | {"too", "so", "not"}):
        return body
    if body[0].text[0].isupper():
        return body  # a name, and somewhere behind it the verb that the lists lack
    if low[0] in DETERMINERS - {"a", "an"} and len(low) > 1 and low[1].endswith("s") and low[1][-2:] != "ss":
        return body  # "the jokes": of more than one thing it is not
    if subject in ("here", "there") and low[0] not in ("a", "an"):
        subject = "it"
    be = "are" if subject in ("you", "we", "they") else "am" if subject == "i" else "is"
    return [*_tokens(f"{subject} {be}"), *_spaced(body)]


def _first_sentence(text: str) -> tuple[list[Token], str]:
    """The tokens of the first sentence, and the text behind it as it is."""
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        start, word = match.start(), match.group()
        blank = start > 0 and text[start - 1].isspace()
        stopped = len(tokens) > 2 and tokens[-1].text[0] in _END and tokens[-2].text.lower() not in ABBREVIATIONS
        if stopped and blank and word[0].isalnum():
            return tokens, text[len(text[:start].rstrip()) :]
        tokens.append(Token(word, blank))
    return tokens, ""


def _without_end(sentence: list[Token]) -> tuple[list[Token], list[Token]]:
    stop = len(sentence)
    while stop and not sentence[stop - 1].text[0].isalnum() and sentence[stop - 1].text[0] not in "'’)":
        stop -= 1
    return sentence[:stop], sentence[stop:]


def _decapitalised(body: list[Token]) -> list[Token]:
    """The first word in lower case, unless it looks like a name or an abbreviation."""
    if not body:
        return body
    word, following = body[0].text, body[1].text if len(body) > 1 else ""
    keep = word.partition("'")[0] == "I" or word[1:2].isupper() or (len(word) == 1 and word != "A")
    keep = keep or (following == "." and word.lower() in ABBREVIATIONS)
    if word.lower() not in PRONOUNS | DETERMINERS | RELATIVE | PREPOSITIONS and following[:1].isupper():
        keep = True
    return body if keep else [Token(word[:1].lower() + word[1:], body[0].blank), *body[1:]]
